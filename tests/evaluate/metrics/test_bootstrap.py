"""The Poisson bootstrap: weights that repeat, sums independent of batches and processes, intervals that cover."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluate.metrics.bootstrap import DocumentSums, bootstrap_weights, intervals, sums_by_document
from evaluate.metrics.metric import numbered


def documents_of(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint64)


def test_weights_are_poisson_and_the_first_row_is_one() -> None:
    weights = bootstrap_weights(np.arange(20_000, dtype=np.uint64), replicates=5, seed=3)
    assert (weights[0] == 1).all()
    counts = np.bincount(weights[1:].long().flatten().numpy()) / 100_000
    expected = [math.exp(-1) / math.factorial(count) for count in range(len(counts))]
    np.testing.assert_allclose(counts, expected, atol=0.006)
    # Replicates are independent of one another.
    assert abs(np.corrcoef(weights[1:].numpy()) - np.eye(5)).max() < 0.03


def test_a_weight_depends_only_on_seed_replicate_and_document() -> None:
    three = bootstrap_weights(documents_of(7, 1 << 40, 3), replicates=9, seed=1)
    alone = bootstrap_weights(documents_of(3), replicates=4, seed=1)
    assert torch.equal(three[:5, 2:], alone)
    assert not torch.equal(bootstrap_weights(documents_of(7, 1 << 40, 3), replicates=9, seed=2), three)


def test_sums_by_document_are_their_definition() -> None:
    values = {"number": torch.arange(6.0), "vector": torch.arange(12.0).view(6, 2)}
    found = sums_by_document(values, torch.tensor([2, 0, 2, 0, 2, 2]), documents=3)
    assert found["number"].tolist() == [4.0, 0.0, 11.0]
    assert found["vector"].tolist() == [[8.0, 10.0], [0.0, 0.0], [22.0, 26.0]]


@given(st.integers(1, 300), st.lists(st.integers(1, 40), max_size=12), st.booleans())
def test_splitting_rows_over_batches_and_processes_changes_no_sum(documents: int, sizes: list[int], two: bool) -> None:
    """Also with far more documents than the buffer takes."""
    document = torch.arange(400) % documents
    values = torch.randn(400, 3, generator=torch.Generator().manual_seed(documents), dtype=torch.float64)
    sums = DocumentSums({"values": (3,)}, replicates=7, seed=5)
    states = [sums.start(), sums.start()]
    ends = [*np.cumsum(sizes), 400]
    for number, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
        rows = slice(int(first), int(last))
        if len(document[rows]):
            names, index = numbered(document[rows])
            batch = sums.of_batch(names, sums_by_document({"values": values[rows]}, index, documents=len(names)))
            states[number % 2 * two] = sums.combine(states[number % 2 * two], batch)
    found = sums.finish(sums.combine(states[0], states[1]))["values"]
    weights = bootstrap_weights(document.numpy().astype(np.uint64), replicates=7, seed=5)
    torch.testing.assert_close(found, weights @ values, rtol=1e-10, atol=1e-10)


def test_intervals_are_the_central_95_percent_and_none_without_replicates() -> None:
    replicates = np.linspace(0, 1, 1001)[:, None] * [1.0, 10.0]
    assert intervals(replicates) == [pytest.approx([0.025, 0.975]), pytest.approx([0.25, 9.75])]
    assert intervals(np.zeros((0, 2))) is None


def test_too_many_resamplings_without_a_document_give_no_interval() -> None:
    replicates = np.ones((1000, 1))
    replicates[:10] = np.nan
    assert intervals(replicates) == [[1.0, 1.0]]
    replicates[:11] = np.nan
    assert intervals(replicates) is None
