"""JumpReLU in training: every gradient against autograd of its definition, and a run that controls its L0."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.open import open_cache
from tests.helpers.progress import StopAt, StoppedError
from tests.helpers.training import changed, train
from train.arrays.parameters import Parameters, random_parameters
from train.config import TrainSettings
from train.loss import nested_step
from train.objective import NestedLoss, equal_weights
from train.record.log import read_log
from transcoder.formats.native import load_transcoder
from transcoder.rules.threshold import JumpReLU

ROWS, WIDTH, DICT_SIZE, TOP_K, BANDWIDTH = 40, 6, 32, 5, 0.4
PREFIXES = (8, 32)


class _Jump(torch.autograd.Function):
    """pre * H(pre - theta), and the estimated gradient of theta: equations 11 and 12 of arXiv 2407.14435."""

    @staticmethod
    def forward(context: Any, pre: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(pre, theta)
        return pre * (pre > theta)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        pre, theta = context.saved_tensors
        near = ((pre - theta).abs() < BANDWIDTH / 2).double()
        return gradients[0] * (pre > theta), (-theta / BANDWIDTH * near * gradients[0]).sum(dim=0)


class _Step(torch.autograd.Function):
    """H(pre - theta)."""

    @staticmethod
    def forward(context: Any, pre: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(pre, theta)
        return (pre > theta).double()

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        pre, theta = context.saved_tensors
        near = ((pre - theta).abs() < BANDWIDTH / 2).double()
        return None, (-1 / BANDWIDTH * near * gradients[0]).sum(dim=0)


def problem() -> tuple[Parameters, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = random_parameters(WIDTH, WIDTH, dict_size=DICT_SIZE, seed=1, dtype=torch.float64)
    weights.b_enc.copy_(torch.randn(DICT_SIZE, generator=generator, dtype=torch.float64) / 4)
    weights.b_dec.copy_(torch.randn(WIDTH, generator=generator, dtype=torch.float64))
    threshold = torch.rand(DICT_SIZE, generator=generator, dtype=torch.float64)
    threshold[:3] = 0.05  # whose window reaches below zero
    source, target = torch.randn(2, ROWS, WIDTH, generator=generator, dtype=torch.float64)
    return replace(weights, threshold=threshold), source, target


@pytest.mark.parametrize("has_target", [True, False])
def test_every_gradient_is_that_of_autograd(has_target: bool) -> None:
    weights, source, target = problem()
    rule = JumpReLU.from_settings(TOP_K, bandwidth=BANDWIDTH, has_target=has_target)
    loss = NestedLoss(PREFIXES, rule, 3.0, equal_weights(PREFIXES), sparsity=0.7)
    found = nested_step(weights, source, target=target, loss=loss)

    leaves = {name: array.clone().requires_grad_() for name, array in weights.tensors().items()}
    traced = Parameters(**leaves)
    pre = source @ traced.W_enc.T + traced.b_enc
    assert traced.threshold is not None
    code = _Jump.apply(pre, traced.threshold)
    l0 = _Step.apply(pre, traced.threshold).sum(dim=1).mean()
    penalty = (l0 / TOP_K - 1) ** 2 if has_target else l0 / TOP_K
    errors = [(traced.b_dec + code[:, :end] @ traced.W_dec[:end] - target).square().sum() for end in PREFIXES]
    value = sum(error / (2 * ROWS * 3.0) for error in errors) + 0.7 * penalty
    assert isinstance(value, torch.Tensor)
    gradients = torch.autograd.grad(value, list(leaves.values()))
    l0 = l0.detach()
    value = value.detach()

    assert float(found.l0[-1]) == pytest.approx(float(l0), rel=1e-12)
    assert found.penalty is not None
    assert float(found.loss + found.penalty) == pytest.approx(float(value), rel=1e-12)
    assert int((gradients[-1] != 0).sum()) > DICT_SIZE / 2
    for name, gradient in zip(leaves, gradients, strict=True):
        torch.testing.assert_close(found.gradients.tensors()[name], gradient, rtol=1e-10, atol=1e-12)


def test_a_run_controls_its_l0_and_a_stopped_one_ends_the_same(
    small_cache: Path, tmp_path: Path, quick: TrainSettings
) -> None:
    """Its file, in the cache's units and with its own thresholds, has the FVU that training stated."""
    changes = {"activation": "jumprelu", "steps": 200, "checkpoint_every": 50, "sparsity": 3.0}
    settings = changed(quick, **changes)
    config = train(small_cache, tmp_path / "whole", settings)
    lines = [line for line in read_log(tmp_path / "whole" / "metrics.jsonl") if "l0" in line]
    first = lines[0]
    last = lines[-1]
    assert first["l0"] > 8
    assert 3 < last["l0"] < 6
    assert last["loss"] == pytest.approx(last["l2_loss"] + last["aux_loss"] + last["sparsity_loss"])

    with pytest.raises(StoppedError):
        train(small_cache, tmp_path / "cut", settings, StopAt(76))
    train(small_cache, tmp_path / "cut", settings)
    for name in ("transcoder.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    transcoder = load_transcoder(tmp_path / "whole")
    assert transcoder.rule.name == "jumprelu"
    assert transcoder.top_k == 4
    rows = open_cache(small_cache).split("held_out").rows(slice(0, 128))
    ordinary = torch.from_numpy(rows.tokens != 0)
    target = rows.target[ordinary].double()
    errors = (transcoder.forward(rows.source[ordinary].float()).double() - target).square().sum()
    fvu = float(errors / (target - target.mean(dim=0)).square().sum())
    assert fvu == pytest.approx(config["held_out_fvu"], rel=1e-4)


def test_thresholds_begin_where_features_fire_on_a_few_rows(
    small_cache: Path, quick: TrainSettings, tmp_path: Path
) -> None:
    changes = {"activation": "jumprelu", "steps": 1, "warmup_steps": 0}
    settings = changed(quick, **changes)
    train(small_cache, tmp_path / "run", settings)
    (line,) = (line for line in read_log(tmp_path / "run" / "metrics.jsonl") if "l0" in line)
    assert 10 < line["l0"] < 24  # four times top_k, on a batch of 64 rows
