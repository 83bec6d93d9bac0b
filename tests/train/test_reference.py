"""The oracle itself: every prefix by a loop over features, and its gradient by finite differences."""

import dataclasses

import pytest
import torch

from train.arrays.parameters import Parameters, random_parameters
from train.objective import NestedLoss, equal_weights
from train.reference import reference_prefixes, reference_step
from transcoder.rules.topk import TopK

PREFIXES = (3, 8)
DOUBLE = torch.float64


@pytest.fixture
def problem() -> tuple[Parameters, torch.Tensor, torch.Tensor, NestedLoss]:
    generator = torch.Generator().manual_seed(0)
    weights = random_parameters(4, 3, dict_size=8, skip=True, seed=1, dtype=DOUBLE)
    source, target = (torch.randn(5, width, dtype=DOUBLE, generator=generator) for width in (4, 3))
    scale = torch.tensor([0.5, 1.0, 2.0], dtype=DOUBLE)
    return weights, source, target, NestedLoss(PREFIXES, TopK(3), 2.5, equal_weights(PREFIXES), dimension_scale=scale)


def test_prefixes_are_sums_over_their_features(
    problem: tuple[Parameters, torch.Tensor, torch.Tensor, NestedLoss],
) -> None:
    weights, source, _, _ = problem
    code = torch.rand(5, 8, dtype=DOUBLE)
    found = reference_prefixes(weights, source, code=code, prefixes=PREFIXES)
    for index, prefix in enumerate(PREFIXES):
        expected = weights.b_dec + source @ weights.W_skip
        for feature in range(prefix):
            expected = expected + code[:, feature, None] * weights.W_dec[feature]
        torch.testing.assert_close(found[:, index], expected)


def test_its_gradient_is_that_of_small_changes(
    problem: tuple[Parameters, torch.Tensor, torch.Tensor, NestedLoss],
) -> None:
    weights, source, target, loss = problem
    value, sse, gradients = reference_step(weights, source, target=target, loss=loss)
    by_hand = sum(weight * error for weight, error in zip(loss.weight_of(5), sse, strict=True))
    torch.testing.assert_close(value, by_hand)
    generator = torch.Generator().manual_seed(2)
    for name, array in weights.tensors().items():
        direction = torch.randn(array.shape, dtype=DOUBLE, generator=generator)
        moved = [
            reference_step(
                dataclasses.replace(weights, **{name: array + sign * 1e-6 * direction}),
                source,
                target=target,
                loss=loss,
            )[0]
            for sign in (1, -1)
        ]
        measured = float(moved[0] - moved[1]) / 2e-6
        expected = float((gradients.tensors()[name] * direction).sum())
        assert measured == pytest.approx(expected, rel=1e-5, abs=1e-8), name
