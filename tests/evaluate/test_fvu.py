"""FVU, cosine and intervals against their definitions, and the invariants that peers break."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import NumericalError, UsageError
from evaluate.metrics.fvu import Fit, bootstrap_weights, cosines, fvu_replicates, intervals, squared_errors
from evaluate.metrics.metric import Replayed, State
from transcoder.sparse_code import SparseCode


def nothing(rows: int) -> SparseCode:
    return SparseCode(torch.zeros(0), torch.zeros(0, dtype=torch.int32), torch.zeros(rows + 1, dtype=torch.int32))


def batch_of(target: torch.Tensor, reconstructed: torch.Tensor, document: torch.Tensor | None = None) -> Replayed:
    rows = torch.arange(len(target))
    document = rows // 5 if document is None else document
    return Replayed(target, target, document, rows, nothing(len(target)), reconstructed)


def measured(batch: Replayed, *, replicates: int = 0, splits: tuple[int, ...] = (), reverse: bool = False) -> State:
    metric = Fit(torch.full((batch.target.shape[1],), 0.2), (4, 8), replicates)
    ends = [*splits, len(batch.target)]
    pieces = [slice(start, end) for start, end in zip([0, *splits], ends, strict=True) if end > start]
    state = metric.start()
    for piece in reversed(pieces) if reverse else pieces:
        part = Replayed(
            batch.source[piece], batch.target[piece], batch.document[piece], batch.row[piece],
            nothing(len(batch.row[piece])), batch.reconstructed[piece],
        )  # fmt: skip
        state = metric.combine(state, metric.measure(part))
    return state


def fvu_of(batch: Replayed) -> list[float]:
    return Fit(torch.zeros(batch.target.shape[1]), (4, 8), 0).compute(measured(batch))["fvu_per_prefix"]


@pytest.fixture
def batch() -> Replayed:
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(60, 6, generator=generator) * torch.arange(1, 7) + 3
    noise = torch.randn(60, 2, 6, generator=generator) * torch.tensor([1.0, 0.4])[:, None]
    return batch_of(target, target[:, None] + noise)


def test_fvu_and_cosine_are_their_definitions(batch: Replayed) -> None:
    y, predicted = batch.target.numpy().astype(np.float64), batch.reconstructed.numpy().astype(np.float64)
    total = ((y - y.mean(0)) ** 2).sum()
    fvu = [((y - predicted[:, prefix]) ** 2).sum() / total for prefix in range(2)]
    norms = np.linalg.norm(predicted, axis=2) * np.linalg.norm(y, axis=1)[:, None]
    cosine = ((predicted * y[:, None]).sum(2) / norms).mean(0)
    result = Fit(torch.zeros(6), (4, 8), 0).compute(measured(batch))
    assert result["fvu_per_prefix"] == pytest.approx(fvu, rel=1e-6)
    assert result["cosine_per_prefix"] == pytest.approx(list(cosine), rel=1e-6)
    assert (result["fvu_min"], result["fvu_max"]) == (min(result["fvu_per_prefix"]), max(result["fvu_per_prefix"]))
    assert result["fvu_mean"] == pytest.approx(np.mean(fvu))
    assert result["tokens_used"] == 60


@given(st.integers(1, 300), st.sampled_from([1e-3, 1.0, 1e4]), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_rows_have_their_error_and_cosine(rows: int, error: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(rows, 50, generator=generator) * 7
    predicted = target[:, None] + error * torch.randn(rows, 2, 50, generator=generator)
    predicted[0], target[-1] = 0, 0
    y, wide = target.double()[:, None], predicted.double()
    torch.testing.assert_close(squared_errors(predicted, target), ((wide - y) ** 2).sum(2), rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(cosines(predicted, target), torch.cosine_similarity(wide, y, dim=2), rtol=0, atol=1e-6)


def test_the_mean_predictor_scores_one(batch: Replayed) -> None:
    mean = batch.target.double().mean(0).float()
    assert fvu_of(batch_of(batch.target, mean.expand(60, 2, 6))) == pytest.approx([1, 1], abs=1e-6)


@given(st.sampled_from([1e-3, 0.1, 10.0, 1000.0]), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_units_do_not_matter(scale: float, seed: int) -> None:
    target = torch.randn(40, 6, generator=torch.Generator().manual_seed(seed)) + 1
    predicted = torch.stack([target * 0.5, target * 0.9], dim=1)
    scaled = fvu_of(batch_of(target * scale, predicted * scale))
    assert scaled == pytest.approx(fvu_of(batch_of(target, predicted)), rel=1e-6)


@given(st.lists(st.integers(0, 60), max_size=5), st.booleans())
@settings(max_examples=30, deadline=None)
def test_splitting_and_reordering_shards_changes_nothing(splits: list[int], reverse: bool) -> None:
    target = torch.randn(60, 6, generator=torch.Generator().manual_seed(2)) * 5 + 2
    batch = batch_of(target, torch.stack([target * 0.5, target * 0.9], dim=1))
    whole, parts = (
        measured(batch, replicates=20),
        measured(batch, replicates=20, splits=tuple(sorted(splits)), reverse=reverse),
    )
    for name, array in whole.items():
        torch.testing.assert_close(parts[name], array, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(fvu_replicates(parts), fvu_replicates(whole), rtol=1e-10, atol=1e-10)


@given(st.floats(0.1, 100), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_a_constant_added_to_a_mean_free_error_raises_it(constant: float, seed: int) -> None:
    target = torch.randn(40, 6, generator=torch.Generator().manual_seed(seed))
    error = torch.randn(40, 6, generator=torch.Generator().manual_seed(seed + 1))
    predicted = (target + error - error.mean(0))[:, None].repeat(1, 2, 1)
    assert fvu_of(batch_of(target, predicted + constant))[1] > fvu_of(batch_of(target, predicted))[1]


def test_no_variance_is_said_and_not_a_number_is_refused(batch: Replayed) -> None:
    with pytest.raises(UsageError, match="no variance"):
        fvu_of(batch_of(torch.ones(10, 6), torch.ones(10, 2, 6)))
    with pytest.raises(NumericalError, match="not finite"):
        fvu_of(batch_of(batch.target, batch.reconstructed * float("nan")))


def test_bootstrap_weights_are_poisson_and_depend_on_the_document_alone() -> None:
    documents = np.arange(4000, dtype=np.uint64)
    weights = bootstrap_weights(documents, replicates=50, seed=7).numpy()
    assert (weights[0] == 1).all()
    assert weights[1:].mean() == pytest.approx(1, abs=0.01)
    assert weights[1:].var() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(weights[1:6])[np.triu_indices(5, 1)]).max() < 0.06
    np.testing.assert_array_equal(
        bootstrap_weights(documents[[5, 3]], replicates=50, seed=7).numpy(), weights[:, [5, 3]]
    )


def test_the_interval_covers_what_resampling_documents_covers() -> None:
    generator = torch.Generator().manual_seed(3)
    document = torch.arange(2000) // 10
    scale = torch.rand(200, generator=generator)[document][:, None] * 2
    target = torch.randn(2000, 6, generator=generator)
    batch = batch_of(
        target, (target + scale * torch.randn(2000, 6, generator=generator))[:, None].repeat(1, 2, 1), document
    )
    state = measured(batch, replicates=1000)
    low, high = Fit(torch.zeros(6), (4, 8), 1000).compute(state)["fvu_interval_per_prefix"][1]
    errors = ((batch.reconstructed[:, 1] - target) ** 2).sum(1).view(200, 10).sum(1).double().numpy()
    power = ((target - target.mean(0)) ** 2).sum(1).view(200, 10).sum(1).double().numpy()
    random = np.random.default_rng(0)
    drawn = random.integers(0, 200, (4000, 200))
    expected = np.percentile(errors[drawn].sum(1) / power[drawn].sum(1), [2.5, 97.5])
    assert [low, high] == pytest.approx(list(expected), rel=0.03)


def test_too_few_documents_have_no_interval() -> None:
    few = np.ones((1000, 2))
    few[:20] = np.nan
    assert intervals(few) is None
    assert intervals(np.ones((0, 2))) is None
    few[:15] = 1.0
    assert intervals(few) == [[1.0, 1.0], [1.0, 1.0]]
