"""Every process has a share of the features; all compute what one process computes."""

import pytest
import torch
from torch import distributed

from common.distributed import Ranks
from tests.helpers.progress import StopAt, StoppedError
from tests.helpers.training import changed, train
from train.arrays.parameters import Parameters, random_parameters
from train.dead.aux_loss import auxiliary
from train.dead.features import Dead
from train.loss import nested_step
from train.objective import NestedLoss, equal_weights
from train.record.log import read_log
from transcoder.formats.native import load_transcoder
from transcoder.rules.registry import make_rule
from transcoder.sharded import Shard

PREFIXES = (3, 20, 41, 97)


def relative(value, expected):
    return float((value - expected).norm() / expected.norm())


def check(activation: str, *, skip: bool) -> None:
    torch.manual_seed(0)
    weights = random_parameters(12, 10, dict_size=97, skip=skip, seed=1, dtype=torch.float64)
    for array in weights.tensors().values():
        array.add_(torch.randn_like(array), alpha=0.1)
    source, target = torch.randn(29, 12, dtype=torch.float64), torch.randn(29, 10, dtype=torch.float64)
    loss = NestedLoss(PREFIXES, make_rule(activation, 6), 7.5, prefix_weights=equal_weights(PREFIXES))
    single = nested_step(weights, source, target=target, loss=loss)
    ranks = Ranks.current()
    shard = Shard(ranks.rank, ranks.world)
    mine = Parameters(**shard.take(weights.tensors()))
    result = nested_step(mine, source, target=target, loss=loss, shard=shard)
    assert relative(result.loss, single.loss) < 1e-12
    assert relative(result.sse, single.sse) < 1e-12
    assert relative(result.l0, single.l0) < 1e-12
    assert torch.equal(result.fired, single.fired[shard.rank :: shard.world])
    assert relative(result.residual, single.residual) < 1e-12
    gradients = shard.gathered_arrays(result.gradients.tensors(), dict_size=97)
    for name, expected in single.gradients.tensors().items():
        assert relative(gradients[name], expected) < 1e-12, name
    norm = torch.stack([array.norm() for array in single.gradients.tensors().values()]).norm()
    assert relative(shard.norm(result.gradients.tensors()), norm) < 1e-12
    again = shard.gathered_arrays(mine.tensors(), dict_size=97)
    assert all(torch.equal(again[name], array) for name, array in weights.tensors().items())


def check_auxiliary(dead: list[int]) -> None:
    """With few dead features some processes have none, and still join every exchange."""
    torch.manual_seed(0)
    weights = random_parameters(12, 10, dict_size=97, seed=1, dtype=torch.float64)
    source, residual = torch.randn(29, 12, dtype=torch.float64), torch.randn(29, 10, dtype=torch.float64)
    ranks = Ranks.current()
    shard = Shard(ranks.rank, ranks.world)
    numbers, own = torch.tensor(dead), torch.tensor([f // shard.world for f in dead if f % shard.world == shard.rank])
    mine, own = Parameters(**shard.take(weights.tensors())), own.long()
    given = {"residual": residual, "top_k": 4}
    pre, own_pre = source @ weights.W_enc.T, source @ mine.W_enc.T
    single = auxiliary(weights, source, pre=pre[:, numbers], dead=Dead(numbers), **given)
    result = auxiliary(mine, source, pre=own_pre[:, own], dead=Dead(own), shard=shard, **given)
    assert relative(result.error, single.error) < 1e-12
    places = [index for index, f in enumerate(dead) if f % shard.world == shard.rank]
    for name in ("encoder", "bias", "decoder"):
        torch.testing.assert_close(getattr(result, name), getattr(single, name)[places], rtol=1e-10, atol=1e-12)


def check_all() -> None:
    for activation in ("topk", "batchtopk"):
        check(activation, skip=activation == "topk")
    for dead in ([0, 6, 12], [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 90]):
        check_auxiliary(dead)


@pytest.mark.parametrize("world", [2, 3])
def test_the_step_of_several_processes_is_the_single_process_step(world, in_processes):
    assert in_processes(world, check_all) == [0] * world


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_sharded_training_gives_what_one_process_gives(activation, small_cache, quick, tmp_path, in_processes):
    settings = changed(quick, activation=activation, skip=True)
    train(small_cache, tmp_path / "one", settings)
    dealt = settings.model_copy(update={"shard_dictionary": True})

    def train_interrupted() -> None:
        with pytest.raises(StoppedError):
            train(small_cache, tmp_path / "two", dealt, StopAt(25))
        distributed.barrier()
        train(small_cache, tmp_path / "two", dealt)

    assert in_processes(2, train_interrupted) == [0, 0]
    single, shared = (load_transcoder(tmp_path / name) for name in ("one", "two"))
    for name, expected in single.arrays().items():
        torch.testing.assert_close(shared.arrays()[name], expected, rtol=2e-3, atol=2e-4)
    logs = [read_log(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert any(line.get("aux_loss") for line in logs[0])
    for alone, sharded in zip(*logs, strict=True):
        for key, value in alone.items():
            assert value == pytest.approx(sharded[key], rel=1e-3, abs=1e-6), key
