"""Every form of the FVU, and cosine, against its definition in float64; and properties that are easily broken."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import NumericalError, UsageError
from evaluate.metrics.fvu import Fvu, median_of_histograms
from evaluate.metrics.metric import Findings, Replayed, State
from transcoder.sparse_code import SparseCode

PREFIXES = (4, 8)
WIDTH = 6


def nothing(rows: int) -> SparseCode:
    return SparseCode(torch.zeros(0), torch.zeros(0, dtype=torch.int32), torch.zeros(rows + 1, dtype=torch.int32))


def batch_of(target: torch.Tensor, reconstructed: torch.Tensor, document: torch.Tensor | None = None) -> Replayed:
    rows = torch.arange(len(target))
    document = rows // 5 if document is None else document
    return Replayed(target, target, document, rows, nothing(len(target)), reconstructed, PREFIXES)


def metric_for(batch: Replayed, *, replicates: int = 0, scale: torch.Tensor | None = None) -> Fvu:
    return Fvu(batch.target.double().mean(0) + 0.01, PREFIXES, replicates, rows=len(batch.target), scale=scale)


def measured(metric: Fvu, batch: Replayed, *, splits: tuple[int, ...] = (), reverse: bool = False) -> State:
    ends = [*splits, len(batch.target)]
    pieces = [slice(start, end) for start, end in zip([0, *splits], ends, strict=True) if end > start]
    state = metric.start()
    for piece in reversed(pieces) if reverse else pieces:
        rows = Replayed(
            batch.source[piece], batch.target[piece], batch.document[piece], batch.row[piece],
            nothing(len(batch.row[piece])), batch.reconstructed[piece], PREFIXES,
        )  # fmt: skip
        state = metric.combine(state, metric.measure(rows))
    return state


def findings(batch: Replayed, *, replicates: int = 0, scale: torch.Tensor | None = None) -> Findings:
    metric = metric_for(batch, replicates=replicates, scale=scale)
    return metric.compute(measured(metric, batch))


def fvu_of(batch: Replayed) -> list[float]:
    return findings(batch).fields["fvu_per_prefix"]


@pytest.fixture(scope="module")
def batch() -> Replayed:
    """3,000 rows, of which four are huge and well explained, and dimensions of unequal size and difficulty."""
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(3000, WIDTH, generator=generator) * torch.arange(1, 7) + 3
    target[::800] *= 100
    noise = torch.randn(3000, 2, WIDTH, generator=generator) * torch.tensor([1.0, 0.4])[:, None]
    return batch_of(target, target[:, None] + noise)


@pytest.fixture(scope="module")
def arrays(batch: Replayed) -> tuple[np.ndarray, np.ndarray]:
    """Target (rows, d) and squared error (rows, prefixes, d) in float64."""
    y = batch.target.numpy().astype(np.float64)
    return y, (y[:, None] - batch.reconstructed.numpy().astype(np.float64)) ** 2


def test_pooled_fvu_and_cosine_are_their_definitions(batch: Replayed, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    y, error = arrays
    predicted = batch.reconstructed.numpy().astype(np.float64)
    norms = np.linalg.norm(predicted, axis=2) * np.linalg.norm(y, axis=1)[:, None]
    cosine = ((predicted * y[:, None]).sum(2) / norms).mean(0)
    fvu = error.sum((0, 2)) / ((y - y.mean(0)) ** 2).sum()
    result = findings(batch).fields
    assert result["fvu_per_prefix"] == pytest.approx(fvu, rel=1e-6)
    assert result["cosine_per_prefix"] == pytest.approx(list(cosine), rel=1e-6)
    assert (result["fvu_min"], result["fvu_max"]) == (min(result["fvu_per_prefix"]), max(result["fvu_per_prefix"]))
    assert result["fvu_mean"] == pytest.approx(np.mean(fvu))
    assert result["tokens_used"] == 3000


def test_fvu_without_the_largest_rows_is_its_definition(batch: Replayed, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    y, error = arrays
    distance = ((y - y.mean(0)) ** 2).sum(1)
    kept = np.argsort(-distance, kind="stable")[3:]
    fvu = error[kept].sum((0, 2)) / ((y[kept] - y[kept].mean(0)) ** 2).sum()
    found = findings(batch).fields
    assert found["fvu_forms"]["without_largest_rows"]["per_prefix"] == pytest.approx(fvu, rel=1e-5)
    assert fvu[1] > 5 * found["fvu"]


def test_fvu_by_dimension_is_its_definition(batch: Replayed, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    y, error = arrays
    by_dimension = error.sum(0) / ((y - y.mean(0)) ** 2).sum(0)
    forms = findings(batch).fields["fvu_forms"]
    assert forms["mean_dimension"]["per_prefix"] == pytest.approx(by_dimension.mean(1), rel=1e-6)
    assert forms["median_dimension"]["per_prefix"] == pytest.approx(np.median(by_dimension, 1), rel=1e-6)


def test_whitened_fvu_is_its_definition(batch: Replayed, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    y, error = arrays
    scale = torch.tensor([0.5, 1.0, 2.0, 4.0, 8.0, 0.0]).double()
    units = np.sqrt(scale.numpy()[:5])
    whitened = ((y - y.mean(0))[:, :5] / units) ** 2
    fvu = (error[:, :, :5] / units**2).sum((0, 2)) / whitened.sum()
    assert findings(batch, scale=scale).fields["fvu_forms"]["whitened"]["per_prefix"] == pytest.approx(fvu, rel=1e-6)
    own = findings(batch).fields["fvu_forms"]
    assert own["whitened"]["per_prefix"] == pytest.approx(own["mean_dimension"]["per_prefix"], rel=1e-12)


def test_fvu_by_token_is_its_definition(batch: Replayed, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    y, error = arrays
    centre = metric_for(batch).centre.numpy()
    by_token = error.sum(2) / ((y - centre) ** 2).sum(1)[:, None]
    forms = findings(batch).fields["fvu_forms"]
    assert forms["mean_token"]["per_prefix"] == pytest.approx(by_token.mean(0), rel=1e-6)
    assert forms["median_token"]["per_prefix"] == pytest.approx(np.median(by_token, 0), rel=0.012)


@given(st.floats(-4, 2), st.floats(0.1, 2), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_median_of_a_histogram_is_the_median(middle: float, spread: float, seed: int) -> None:
    values = 10 ** (middle + spread * np.random.default_rng(seed).normal(size=999))
    edges = 10 ** np.linspace(-5, 3, 801)
    counts = np.histogram(values, [0, *edges, np.inf])[0].astype(np.float64)
    assert median_of_histograms(counts[None])[0] == pytest.approx(np.median(values), rel=0.024)


def test_every_form_scores_the_mean_as_one_and_a_copy_as_zero(batch: Replayed) -> None:
    ordinary = batch_of(batch.target[1:800], batch.target[1:800].mean(0).expand(799, 2, WIDTH))
    metric = Fvu(ordinary.target.double().mean(0), PREFIXES, 0, rows=799)
    found = metric.compute(measured(metric, ordinary)).fields
    assert found["fvu_per_prefix"] == pytest.approx([1, 1], abs=1e-6)
    for name, form in found["fvu_forms"].items():
        assert form["per_prefix"] == pytest.approx([1, 1], abs=1e-2 if "token" in name else 1e-3), name
    copied = findings(batch_of(batch.target, batch.target[:, None].repeat(1, 2, 1))).fields
    assert [form["value"] for form in copied["fvu_forms"].values()] == pytest.approx([0] * 6, abs=1e-5)


@given(st.sampled_from([1e-3, 0.1, 10.0, 1000.0]), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_units_do_not_matter(scale: float, seed: int) -> None:
    target = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(seed)) + 1
    predicted = torch.stack([target * 0.5, target * 0.9], dim=1)
    scaled = fvu_of(batch_of(target * scale, predicted * scale))
    assert scaled == pytest.approx(fvu_of(batch_of(target, predicted)), rel=1e-6)


@given(st.lists(st.integers(0, 600), max_size=5), st.booleans())
@settings(max_examples=20, deadline=None)
def test_splitting_and_reordering_batches_changes_nothing(splits: list[int], reverse: bool) -> None:
    target = torch.randn(600, WIDTH, generator=torch.Generator().manual_seed(2)) * 5 + 2
    batch = batch_of(target, torch.stack([target * 0.5, target * 0.9], dim=1))
    metric = metric_for(batch, replicates=20)
    at_once = metric.compute(measured(metric, batch))
    pieces = metric.compute(measured(metric, batch, splits=tuple(sorted(splits)), reverse=reverse))
    for name, values in at_once.replicates.items():
        np.testing.assert_allclose(pieces.replicates[name], values, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(pieces.replicates["fvu"], at_once.replicates["fvu"], rtol=1e-10, atol=1e-10)


@given(st.floats(0.1, 100), st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_a_constant_added_to_a_mean_free_error_raises_it(constant: float, seed: int) -> None:
    target = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(seed))
    error = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(seed + 1))
    predicted = (target + error - error.mean(0))[:, None].repeat(1, 2, 1)
    assert fvu_of(batch_of(target, predicted + constant))[1] > fvu_of(batch_of(target, predicted))[1]


def test_a_dimension_that_never_changes_counts_in_no_form_by_dimension(batch: Replayed) -> None:
    target = batch.target.clone()
    target[:, 2] = 1.1
    forms = findings(batch_of(target, batch.reconstructed)).fields["fvu_forms"]
    others = [0, 1, 3, 4, 5]
    without = findings(batch_of(target[:, others], batch.reconstructed[:, :, others])).fields["fvu_forms"]
    for name in ("mean_dimension", "median_dimension", "whitened"):
        assert forms[name]["per_prefix"] == pytest.approx(without[name]["per_prefix"], rel=1e-9)


def test_no_variance_and_values_that_are_not_numbers_are_refused(batch: Replayed) -> None:
    constant = torch.full((10, WIDTH), 1.1)
    with pytest.raises(UsageError, match="no variance"):
        fvu_of(batch_of(constant, torch.ones(10, 2, WIDTH)))
    with pytest.raises(NumericalError, match="not finite"):
        fvu_of(batch_of(batch.target, batch.reconstructed * float("nan")))


def test_intervals_cover_what_resampling_documents_covers() -> None:
    """Every form, against forms computed again on documents drawn with replacement."""
    generator = torch.Generator().manual_seed(3)
    document = torch.arange(2000) // 10
    scale = torch.rand(200, generator=generator)[document][:, None] * 2
    target = torch.randn(2000, WIDTH, generator=generator) * torch.arange(1, 7)
    noise = scale * torch.randn(2000, WIDTH, generator=generator)
    batch = batch_of(target, (target + noise)[:, None].repeat(1, 2, 1), document)
    result = findings(batch, replicates=1000).fields

    random = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {}
    for _ in range(400):
        rows = (random.integers(0, 200, 200)[:, None] * 10 + np.arange(10)).ravel()
        y, error = target.numpy()[rows].astype(np.float64), (noise.numpy()[rows].astype(np.float64)) ** 2
        squares = (y - y.mean(0)) ** 2
        by_token = error.sum(1) / squares.sum(1)
        values = {
            "fvu": error.sum() / squares.sum(),
            "mean_dimension": (error.sum(0) / squares.sum(0)).mean(),
            "mean_token": by_token.mean(),
            "median_token": np.median(by_token),
        }
        for name, value in values.items():
            drawn.setdefault(name, []).append(value)
    for name, values in drawn.items():
        low, high = (result["fvu_interval_per_prefix"] if name == "fvu"
                     else result["fvu_forms"][name]["interval_per_prefix"])[1]  # fmt: skip
        assert [low, high] == pytest.approx(list(np.percentile(values, [2.5, 97.5])), rel=0.06), name
