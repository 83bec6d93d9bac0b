"""Dead features begin again: at which rows, how often they fire, and that a run ends with fewer of them."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.training import changed, train
from train.arrays.batch_share import BatchShare
from train.arrays.parameters import Parameters, random_parameters
from train.config import TrainSettings
from train.dead.features import Dead
from train.dead.revive import drawn_order, may_revive, revive_
from train.loss import StepResult, nested_step
from train.objective import NestedLoss, equal_weights
from train.resolved import resolve
from transcoder.rules.registry import make_rule

DEAD = torch.tensor([3, 8, 31])


def batch(seed: int = 1) -> tuple[Parameters, torch.Tensor, StepResult]:
    """Random weights whose features ``DEAD`` fire nowhere, 40 rows, and the step's result on them."""
    weights = random_parameters(12, 10, dict_size=32, seed=seed)
    weights.b_enc[DEAD] -= 10
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(40, 12, generator=generator) + 3
    target = torch.randn(40, 10, generator=generator)
    loss = NestedLoss((16, 32), make_rule("topk", 4), 10.0, equal_weights((16, 32)))
    return weights, source, nested_step(weights, source, target=target, loss=loss)


def revived(step: int = 5) -> tuple[Parameters, torch.Tensor, StepResult]:
    weights, source, result = batch()
    revive_(weights, source, result=result, dead=Dead(DEAD), order=drawn_order(step, 40), share=BatchShare(40, 40))
    return weights, source, result


def test_a_feature_begins_at_its_row_with_the_error_there() -> None:
    weights, source, result = revived()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(5))
    for feature in DEAD.tolist():
        row = int(order[feature])
        direction = source[row] - source.mean(dim=0)
        torch.testing.assert_close(weights.W_enc[feature], 0.5 * direction / direction.norm())
        missing = -result.residual[row]
        torch.testing.assert_close(weights.W_dec[feature], missing / missing.norm())


@pytest.mark.parametrize(("share", "count"), [(0.003, 1), (0.1, 4)])
def test_a_revived_feature_fires_on_its_share_of_the_rows(
    share: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.dead.revive._SHARE_OF_ROWS", share)
    weights, source, result = revived()
    thresholds = result.code.values.view(40, 4).min(dim=1).values
    above = source @ weights.W_enc.T + weights.b_enc > thresholds[:, None]
    assert above[:, DEAD].sum(dim=0).tolist() == [count] * 3


def test_the_other_features_do_not_change() -> None:
    before, _, _ = batch()
    weights, _, _ = revived()
    others = [feature for feature in range(32) if feature not in DEAD.tolist()]
    for name in ("W_enc", "b_enc", "W_dec"):
        assert torch.equal(getattr(weights, name)[others], getattr(before, name)[others])


def test_the_same_step_draws_the_same_rows_and_another_step_others() -> None:
    assert torch.equal(revived()[0].W_enc, revived()[0].W_enc)
    assert not torch.equal(revived(step=5)[0].W_enc, revived(step=6)[0].W_enc)


def test_equal_rows_revive_no_feature() -> None:
    weights, source, result = batch()
    before = weights.W_enc.clone()
    revive_(
        weights,
        source[:1].expand(40, -1),
        result=result,
        dead=Dead(DEAD),
        order=drawn_order(5, 40),
        share=BatchShare(40, 40),
    )
    assert torch.equal(weights.W_enc, before)
    assert all(bool(array.isfinite().all()) for array in weights.tensors().values())


@pytest.mark.parametrize(
    ("values", "steps"),
    [({}, range(700)), ({"revive": False}, range(0)), ({"schedule": "constant"}, range(1000))],
)
def test_features_are_revived_only_while_the_learning_rate_is_high_enough(values: dict[str, Any], steps: range) -> None:
    settings = resolve(
        TrainSettings.model_validate({"steps": 1000, "warmup_steps": 100} | values), model="m", d_target=96
    )
    found = [step for step in range(100, 1000) if may_revive(settings, step)]
    assert found == [step for step in steps if step >= 100]


def test_a_run_ends_with_fewer_dead_features(small_cache: Path, tmp_path: Path, quick: TrainSettings) -> None:
    dead: dict[bool, float] = {}
    for revive in (False, True):
        settings = changed(quick, steps=120, revive=revive, lr=3e-2)
        config = train(small_cache, tmp_path / str(revive), settings)
        dead[revive] = config["dead"]
    assert dead[True] < dead[False]
