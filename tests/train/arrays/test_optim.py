"""The values of the schedule, and an update against Adam in float64."""

import math

import pytest
import torch

from train.arrays.optim import Moments, learning_rate, update_
from train.arrays.parameters import Parameters, random_parameters
from train.config import TrainSettings
from train.resolved import ResolvedSettings, resolve


def resolved(values: dict[str, object]) -> ResolvedSettings:
    return resolve(TrainSettings.model_validate(values), model="any", d_target=96)


def rates(**values: object) -> list[float]:
    settings = resolved({"steps": 100, "warmup_steps": 10, "lr": 1.0} | values)
    return [learning_rate(settings, step) for step in range(settings.steps)]


def test_warm_up_rises_in_equal_steps_to_the_full_rate() -> None:
    assert rates()[:11] == pytest.approx([0.1 * (step + 1) for step in range(10)] + [1 - 1 / 90])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("decay_steps", [None, 20, 1])
@pytest.mark.parametrize("min_lr", [0.0, 0.25])
def test_decay_reaches_min_lr_on_the_last_step(schedule: str, decay_steps: int | None, min_lr: float) -> None:
    found = rates(schedule=schedule, decay_steps=decay_steps, min_lr=min_lr)
    assert found[-1] == pytest.approx(min_lr, abs=1e-15)
    start = 100 - (decay_steps or 90)
    assert found[10:start] == [1.0] * (start - 10)
    assert all(
        later < earlier for earlier, later in zip(found[max(start, 10) - 1 :], found[max(start, 10) :], strict=False)
    )


def test_shapes_of_the_decays() -> None:
    linear, cosine = rates(schedule="linear"), rates(schedule="cosine")
    assert linear[54] == pytest.approx(0.5)
    assert cosine[54] == pytest.approx(0.5)
    assert cosine[32] == pytest.approx((1 + math.cos(math.pi * 23 / 90)) / 2)


def test_constant_stays() -> None:
    assert set(rates(schedule="constant")[10:]) == {1.0}


def gradient_like(weights: Parameters, seed: int) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    shaped = {name: torch.randn(array.shape, generator=generator) for name, array in weights.tensors().items()}
    return Parameters(**shaped)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_update_is_adam_then_unit_rows(optimizer: str, clip_norm: float | None, weight_decay: float) -> None:
    values = {"optimizer": optimizer, "clip_norm": clip_norm, "weight_decay": weight_decay, "lr": 0.01}
    settings = resolved(values | {"schedule": "constant", "warmup_steps": 0})
    weights = random_parameters(5, 4, dict_size=6, skip=True, seed=1)
    exact = {name: array.clone().double() for name, array in weights.tensors().items()}
    first, second = ({name: torch.zeros_like(array) for name, array in exact.items()} for _ in range(2))
    moments = Moments.zero(weights)
    for step in range(3):
        gradients = gradient_like(weights, step)
        plain = {name: array.clone().double() for name, array in gradients.tensors().items()}
        norm = math.sqrt(sum(float(array.square().sum()) for array in plain.values()))
        told = update_(weights, gradients, moments=moments, settings=settings, step=step)
        assert float(told) == pytest.approx(norm, rel=1e-5)
        factor = 1.0 if clip_norm is None else min(1.0, clip_norm / norm)
        for name, array in exact.items():
            decay = weight_decay if name in ("W_enc", "W_skip") else 0.0
            grad = plain[name] * factor + (decay * array if optimizer == "adam" else 0)
            array.mul_(1 - 0.01 * decay if optimizer == "adamw" else 1)
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            mean, square = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
            array.sub_(0.01 * mean / (square.sqrt() + 1e-8))
        exact["W_dec"] /= exact["W_dec"].norm(dim=1, keepdim=True)
    for name, array in weights.tensors().items():
        torch.testing.assert_close(array.double(), exact[name], rtol=1e-5, atol=1e-6)


def test_a_gradient_that_is_not_finite_leaves_the_weights() -> None:
    weights = random_parameters(5, 4, dict_size=6)
    before = {name: array.clone() for name, array in weights.tensors().items()}
    gradients, moments = gradient_like(weights, 0), Moments.zero(weights)
    gradients.b_enc[2] = math.nan
    norm = update_(weights, gradients, moments=moments, settings=resolved({"lr": 0.1}), step=0)
    assert not bool(norm.isfinite())
    for name, array in weights.tensors().items():
        torch.testing.assert_close(array, before[name])
    assert not any(bool(array.any()) for array in moments.first.values())
