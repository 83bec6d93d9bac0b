"""The reconstructions a transcoder must beat, against closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.metrics.baselines import Baselines, _ridge_errors, rounding_errors, upper_panels, whole_square
from evaluate.metrics.metric import Replayed
from transcoder.sparse_code import SparseCode

NOTHING = SparseCode(torch.zeros(0), torch.zeros(0, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))


def evaluated(source: torch.Tensor, target: torch.Tensor, *, bias: torch.Tensor, pieces: int = 1) -> dict[str, object]:
    metric = Baselines(torch.full((source.shape[1],), 0.3), torch.full((target.shape[1],), -0.2), bias)
    state = metric.start()
    for rows in torch.arange(len(source)).chunk(pieces):
        reconstructed = target[rows][:, None]
        batch = Replayed(source[rows], target[rows], rows // 8, rows, NOTHING, reconstructed, (1,))
        state = metric.combine(state, metric.measure(batch))
    return metric.compute(state).fields["baselines"]


def affine_data(noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(4000, 5, generator=generator) + 2
    target = source @ torch.randn(5, 3, generator=generator) - 4 + noise * torch.randn(4000, 3, generator=generator)
    return source, target


def test_an_affine_target_is_explained_up_to_its_noise() -> None:
    source, target = affine_data(0.5)
    result = evaluated(source, target, bias=target.mean(0))
    variance = ((target - target.mean(0)) ** 2).sum() / len(target)
    assert result["affine"] == pytest.approx(3 * 0.25 / float(variance), rel=0.05)


def test_the_affine_map_equals_fitting_the_folds_by_hand() -> None:
    source, target = affine_data(1.0)
    at_once, in_pieces = (evaluated(source, target, bias=target.mean(0), pieces=pieces) for pieces in (1, 7))
    assert in_pieces["affine"] == pytest.approx(at_once["affine"], rel=1e-5)
    x, y = source.double().numpy(), target.double().numpy()
    design = np.c_[x, np.ones(len(x))]
    fitted = np.linalg.lstsq(design, y, rcond=None)[0]
    in_sample = ((y - design @ fitted) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()
    assert at_once["affine_in_sample"] == pytest.approx(in_sample, rel=1e-5)
    assert in_sample < at_once["affine"] < in_sample * 1.02


def test_a_badly_conditioned_source_costs_no_accuracy() -> None:
    """Dimensions that differ a thousandfold and nearly repeat one another, as a model's do; against least squares."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(40, 40, generator=generator)).Q * torch.logspace(0, -4, 40)[:, None]
    source = torch.randn(8000, 40, generator=generator) @ mixing * torch.logspace(0, 3, 40) + 0.5
    source = source.bfloat16().float()
    x = source.double() - source.double().mean(0)
    y = x @ torch.randn(40, 4, generator=generator).double()
    y = (y / y.std(0) + 0.5 * torch.randn(8000, 4, generator=generator)).bfloat16()
    result = evaluated(source, y.float(), bias=torch.zeros(4), pieces=5)
    design, wanted = np.c_[source.double().numpy(), np.ones(8000)], y.double().numpy()
    left = wanted - design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
    expected = (left**2).sum() / ((wanted - wanted.mean(0)) ** 2).sum()
    assert result["affine_in_sample"] == pytest.approx(expected, abs=1e-5)
    assert expected < float(str(result["affine"])) < 1.02 * expected


@pytest.mark.parametrize("ridge", [1e-8, 1e-2, 1.0])
def test_a_ridge_map_scores_other_rows_as_its_definition_does(ridge: float) -> None:
    """One dimension never varies, and another has a variance of a millionth: each has its own unit."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([1.0, 30.0, 1e-3, 0.0, 1.0, 2.0], dtype=torch.float64)
    x = torch.randn(2, 300, 6, generator=generator, dtype=torch.float64) * scales + 0.5
    y = x @ torch.randn(6, 4, generator=generator, dtype=torch.float64) + torch.randn(2, 300, 4, generator=generator)
    fit, left_out = (
        {"n": a.new_tensor(300.0), "x": a.sum(0), "y": b.sum(0), "xx": a.T @ a, "xy": a.T @ b, "yy": b.square().sum()}
        for a, b in zip(x, y, strict=True)
    )
    found = _ridge_errors(fit, left_out, (0.3, ridge))

    centred = x[0] - x[0].mean(0)
    squares = centred.square().sum(0)
    penalty = ridge * squares.clamp(min=1e-6 * float(squares.mean()))
    weight = torch.linalg.solve(centred.T @ centred + penalty.diag(), centred.T @ (y[0] - y[0].mean(0)))
    predicted = (x[1] - x[0].mean(0)) @ weight + y[0].mean(0)
    assert float(found[1]) == pytest.approx(float((y[1] - predicted).square().sum()), rel=1e-9)


@given(st.integers(1, 20), st.integers(1, 1000))
@settings(max_examples=15, deadline=None)
def test_the_upper_panels_are_the_complete_product(rows: int, width: int) -> None:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(width))
    torch.testing.assert_close(whole_square(upper_panels(x), width), x.T @ x, rtol=1e-4, atol=1e-4)


def test_a_map_fitted_to_noise_explains_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(400, 60, generator=generator), torch.randn(400, 3, generator=generator)
    assert evaluated(source, target, bias=target.mean(0))["affine"] > 0.95


def test_too_few_rows_for_a_map_is_a_reason() -> None:
    result = evaluated(torch.randn(40, 60), torch.randn(40, 3), bias=torch.zeros(3))
    assert result["affine"] is None
    assert "60 inputs" in str(result["affine_reason"])


def test_the_bias_alone_scores_one_at_the_mean_and_more_elsewhere() -> None:
    source, target = affine_data(1.0)
    assert evaluated(source, target, bias=target.mean(0))["bias_only"] == pytest.approx(1, abs=1e-9)
    moved = target.mean(0) + 1
    expected = ((target - moved) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()
    assert evaluated(source, target, bias=moved)["bias_only"] == pytest.approx(float(expected), rel=1e-5)


def test_the_storage_floor_is_what_rounding_costs() -> None:
    values = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0)) * 7
    true = (values.bfloat16().float() - values).square().sum()
    assert float(rounding_errors(values).sum()) == pytest.approx(float(true), rel=0.02)
    assert rounding_errors(torch.zeros(2, 3)).tolist() == [0, 0]
    assert float(rounding_errors(torch.tensor([[1.0, -3.0]]))) == pytest.approx((2.0**-14 + 2.0**-12) / 12)


def test_an_autoencoder_is_compared_with_as_many_principal_axes_as_it_has_active_features() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3
    metric = Baselines(torch.full((6,), 0.3), torch.full((6,), 0.3), rows.mean(0), prefixes=2)
    features = torch.tensor([0, 1, 4], dtype=torch.int32).repeat(len(rows))
    code = SparseCode(torch.ones(len(features)), features, torch.arange(0, len(features) + 1, 3, dtype=torch.int32))
    number = torch.arange(len(rows))
    batch = Replayed(rows, rows, number // 8, number, code, rows[:, None].expand(-1, 2, -1), (2, 5))
    found = metric.compute(metric.combine(metric.start(), metric.measure(batch))).fields["baselines"]

    centred = (rows - rows.mean(0)).double().numpy()
    shares = np.linalg.svd(centred)[1] ** 2
    assert found["affine"] is None
    assert found["affine_reason"]
    assert found["pca_rank_per_prefix"] == [2, 3]
    for rank, fvu in zip((2, 3), found["pca_per_prefix"], strict=True):
        in_sample = shares[rank:].sum() / shares.sum()
        assert in_sample < fvu < 1.02 * in_sample
