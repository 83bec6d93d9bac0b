"""The auxiliary loss against its definition, values and gradients in float64, and mistakes that it must not have."""

import pytest
import torch
from torch import Tensor

from train.arrays.parameters import Parameters, random_parameters
from train.dead import aux_loss
from train.dead.aux_loss import add_auxiliary_, auxiliary, auxiliary_scale, spread, variation
from train.dead.features import Dead, count_tokens_, dead_count, dead_share

DEAD = torch.tensor([1, 4, 5, 9])
ALPHA, TOP_K = 1 / 32, 2


def problem() -> tuple[Parameters, Tensor, Tensor]:
    weights = random_parameters(6, 5, dict_size=12, seed=3, dtype=torch.float64, skip=True)
    weights.b_dec.add_(torch.arange(5.0))
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    return weights, source, torch.randn(20, 5, generator=generator, dtype=torch.float64)


def defined(weights: Parameters, source: Tensor, e: Tensor) -> Tensor:
    """alpha * min(dead / k_aux, 1) * MSE(e_hat, e) / Var(e), in five lines."""
    pre = source @ weights.W_enc[DEAD].T + weights.b_enc[DEAD]
    kept = pre >= pre.topk(TOP_K, dim=1).values[:, -1:]
    e_hat = (pre.relu() * kept) @ weights.W_dec[DEAD]
    return ALPHA * min(len(DEAD) / TOP_K, 1) * (e_hat - e).square().mean() / (e - e.mean(dim=0)).square().mean()


def computed(weights: Parameters, source: Tensor, e: Tensor) -> tuple[Tensor, Parameters]:
    pre = (source @ weights.W_enc.T + weights.b_enc)[:, DEAD]
    extra = auxiliary(weights, source, pre=pre, residual=-e, dead=Dead(DEAD), top_k=TOP_K)
    scale = auxiliary_scale(alpha=ALPHA, dead=Dead(DEAD).number(), top_k=TOP_K, variation=variation(spread(-e)))
    zeros = {name: torch.zeros_like(array) for name, array in weights.tensors().items()}
    add_auxiliary_(gradients := Parameters(**zeros), extra, dead=Dead(DEAD), scale=scale)
    return extra.error * scale, gradients


@pytest.mark.parametrize("products", [False, True])
def test_value_and_gradients_are_the_definition(products: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aux_loss, "prefers_products", lambda *_, **__: products)
    weights, source, e = problem()
    leaves = {name: array.clone().requires_grad_() for name, array in weights.tensors().items()}
    value = defined(Parameters(**leaves), source, e)
    expected = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values()), allow_unused=True), strict=True))
    loss, gradients = computed(weights, source, e)
    torch.testing.assert_close(loss, value.detach(), rtol=1e-12, atol=0)
    assert expected["b_dec"] is None
    assert expected["W_skip"] is None
    assert not gradients.b_dec.any()
    assert gradients.W_skip is not None
    assert not gradients.W_skip.any()
    torch.testing.assert_close(gradients.W_enc, expected["W_enc"], rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(gradients.b_enc, expected["b_enc"], rtol=1e-10, atol=1e-14)
    along = (expected["W_dec"] * weights.W_dec).sum(dim=1, keepdim=True)
    torch.testing.assert_close(gradients.W_dec, expected["W_dec"] - along * weights.W_dec, rtol=1e-10, atol=1e-14)


def test_only_dead_features_are_touched() -> None:
    _, gradients = computed(*problem())
    alive = torch.ones(12, dtype=torch.bool)
    alive[DEAD] = False
    assert not gradients.W_enc[alive].any()
    assert not gradients.b_enc[alive].any()
    assert not gradients.W_dec[alive].any()


def test_neither_bias_nor_skip_is_in_the_auxiliary_loss() -> None:
    weights, source, e = problem()
    before, _ = computed(weights, source, e)
    weights.b_dec.add_(100.0)
    assert weights.W_skip is not None
    weights.W_skip.add_(1.0)
    assert computed(weights, source, e)[0] == before


def test_few_dead_features_count_less() -> None:
    unit = torch.ones((), dtype=torch.float64)
    assert float(auxiliary_scale(alpha=1.0, dead=3 * unit, top_k=12, variation=unit)) == 0.25
    assert float(auxiliary_scale(alpha=1.0, dead=30 * unit, top_k=12, variation=unit)) == 1.0


def test_spread_adds_up_over_blocks_of_rows() -> None:
    e = torch.randn(30, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    total = (e - e.mean(dim=0)).square().sum()
    torch.testing.assert_close(variation(spread(e[:7]) + spread(e[7:])), total)


def test_dead_is_counted_in_tokens_since_the_last_firing() -> None:
    since = torch.zeros(3, dtype=torch.int64)
    count_tokens_(since, torch.tensor([True, False, False]), tokens=60)
    count_tokens_(since, torch.tensor([False, False, True]), tokens=40)
    assert since.tolist() == [40, 100, 0]
    assert dead_count(since, after_tokens=100) == 1
    assert dead_count(since, after_tokens=101) == 0
    assert float(dead_share(since, after_tokens=40)) == pytest.approx(2 / 3)


def test_products_in_bfloat16_are_as_close_as_bfloat16_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aux_loss, "prefers_products", lambda *_, **__: True)
    doubles, source, e = problem()
    weights = Parameters(**{name: array.float() for name, array in doubles.tensors().items()})
    source, e = source.float(), e.float()
    given = {
        "pre": (source @ weights.W_enc.T + weights.b_enc)[:, DEAD],
        "residual": -e,
        "dead": Dead(DEAD),
        "top_k": TOP_K,
    }
    exact = auxiliary(weights, source, **given)
    rounded = auxiliary(weights, source, **given, dtype=torch.bfloat16)
    for name in ("error", "encoder", "bias", "decoder"):
        value, near = getattr(exact, name), getattr(rounded, name)
        assert 0 < (near - value).norm() / value.norm() < 0.02, name
