"""Every sum of a batch against its definition in float64, with documents in runs and shuffled."""

import numpy as np
import pytest
import torch

from evaluate.metrics import error_sums as module
from evaluate.metrics.error_sums import distance_sums, error_sums

ROWS, PREFIXES, WIDTH, DOCUMENTS = 70, 3, 5, 4


@pytest.mark.parametrize("ordered", [True, False])
def test_all_sums_are_their_definitions(ordered: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Runs of 32 rows: the smallest.
    monkeypatch.setattr(module, "_RUN_VALUES", 1)
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(ROWS, WIDTH, generator=generator) * 3 + 1
    reconstructed = target[:, None] + torch.randn(ROWS, PREFIXES, WIDTH, generator=generator)
    index = torch.randint(0, DOCUMENTS, (ROWS,), generator=generator)
    index = index.sort().values if ordered else index
    centre = target.mean(dim=0)
    found = error_sums(reconstructed, target, index, documents=DOCUMENTS, centre=centre)

    y, guess = target.double().numpy(), reconstructed.double().numpy()
    centred = y - centre.double().numpy()
    errors = (guess - y[:, None]) ** 2
    norms = np.linalg.norm(guess, axis=2) * np.linalg.norm(y, axis=1)[:, None]
    np.testing.assert_allclose(found.squares, (centred**2).sum(1), rtol=1e-12)
    np.testing.assert_allclose(found.errors, errors.sum(2), rtol=1e-5)
    np.testing.assert_allclose(found.cosines, (guess * y[:, None]).sum(2) / norms, rtol=1e-5)
    for document in range(DOCUMENTS):
        own = (index == document).numpy()
        np.testing.assert_allclose(found.away[document], centred[own].sum(0), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(found.variance[document], (centred[own] ** 2).sum(0), rtol=1e-10)
        np.testing.assert_allclose(found.errors_by_dimension[document], errors[own].sum(0), rtol=1e-5)


def test_a_reconstruction_of_zeros_has_cosine_0() -> None:
    target = torch.ones(2, 3)
    target[1] = 0
    index = torch.zeros(2, dtype=torch.int64)
    found = error_sums(torch.zeros(2, 1, 3), target, index, documents=1, centre=torch.zeros(3))
    assert found.cosines.tolist() == [[0.0], [0.0]]
    torch.testing.assert_close(found.errors, torch.tensor([[3.0], [0.0]]).double())


@pytest.mark.parametrize("block_values", [1, 12, 1 << 18])
def test_distances_are_their_definitions_in_blocks_of_any_size(
    block_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RUN_VALUES", block_values)
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(ROWS, WIDTH, generator=generator) * 3 + 1
    centre = torch.randn(WIDTH, generator=generator)
    found = distance_sums(target, centre)

    centred = target.double().numpy() - centre.double().numpy()
    np.testing.assert_allclose(found.squares, (centred**2).sum(1), rtol=1e-12)
    np.testing.assert_allclose(found.away, centred.sum(0), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.variance, (centred**2).sum(0), rtol=1e-12)
