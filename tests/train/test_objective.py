"""The weights of dimensions and prefixes in the loss."""

from dataclasses import replace

import pytest
import torch

from train.objective import NestedLoss, dimension_scale, equal_weights
from transcoder.rules.topk import TopK

LOSS = NestedLoss(prefixes=(2, 5), rule=TopK(1), target_variance=3.0, prefix_weights=equal_weights((2, 5)))


def test_a_dimension_that_never_varies_counts_like_a_small_one():
    scale = dimension_scale(torch.tensor([0.0, 1.0, 1.0]), 1.0)
    assert scale is not None
    assert float(scale[0] / scale[1]) == pytest.approx((2e-6 / 3) ** -0.5, rel=1e-5)


def test_without_balance_no_dimension_is_scaled():
    assert dimension_scale(torch.ones(3), 0.0) is None


def test_a_batch_of_the_mean_alone_costs_one():
    """SSE of rows * variance in every prefix: a loss of 1."""
    assert sum(weight * 7 * 3.0 for weight in LOSS.weight_of(7)) == pytest.approx(1)


def test_gradients_carry_the_scale_twice_and_the_residual_does_not():
    sums, left = torch.randn(4, 2, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    scale = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    errors = sums.cumsum(dim=1) - left[:, None]
    sse, residual = replace(LOSS, dimension_scale=scale).grad_sums_(sums, left)
    torch.testing.assert_close(sse, (errors * scale).square().sum(dim=(0, 2)))
    torch.testing.assert_close(residual, errors[:, -1])
    gradients = 2 * errors * scale.square() * torch.tensor(LOSS.weight_of(4), dtype=torch.float64)[:, None]
    torch.testing.assert_close(sums, gradients.flip(1).cumsum(dim=1).flip(1))
