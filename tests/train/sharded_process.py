"""One of several processes: compares its step, by features and by rows, with the single process's; says "equal"."""

import sys

import torch
from parts_checks import check_parts
from torch import distributed

from common.distributed import Ranks
from train.arrays.parameters import Parameters, random_parameters
from train.dead.aux_loss import auxiliary
from train.dead.features import Dead
from train.loss import NestedLoss, equal_weights, nested_step
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
    whole = shard.whole(result.gradients.tensors(), dict_size=97)
    for name, expected in single.gradients.tensors().items():
        assert relative(whole[name], expected) < 1e-12, name
    norm = torch.stack([array.norm() for array in single.gradients.tensors().values()]).norm()
    assert relative(shard.norm(result.gradients.tensors()), norm) < 1e-12
    again = shard.whole(mine.tensors(), dict_size=97)
    assert all(torch.equal(again[name], array) for name, array in weights.tensors().items())


def check_auxiliary(dead: list[int]) -> None:
    """With few dead features some processes have none, and still take part."""
    torch.manual_seed(0)
    weights = random_parameters(12, 10, dict_size=97, seed=1, dtype=torch.float64)
    source, residual = torch.randn(29, 12, dtype=torch.float64), torch.randn(29, 10, dtype=torch.float64)
    ranks = Ranks.current()
    shard = Shard(ranks.rank, ranks.world)
    whole, own = torch.tensor(dead), torch.tensor([f // shard.world for f in dead if f % shard.world == shard.rank])
    mine, own = Parameters(**shard.take(weights.tensors())), own.long()
    given = {"residual": residual, "top_k": 4}
    pre, own_pre = source @ weights.W_enc.T, source @ mine.W_enc.T
    single = auxiliary(weights, source, pre=pre[:, whole], dead=Dead(whole), **given)
    result = auxiliary(mine, source, pre=own_pre[:, own], dead=Dead(own), shard=shard, **given)
    assert relative(result.error, single.error) < 1e-12
    places = [place for place, f in enumerate(dead) if f % shard.world == shard.rank]
    for name in ("encoder", "bias", "decoder"):
        torch.testing.assert_close(getattr(result, name), getattr(single, name)[places], rtol=1e-10, atol=1e-12)


def main() -> None:
    rank, world, meeting_point = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=world)
    for activation in ("topk", "batchtopk"):
        check(activation, skip=activation == "topk")
    for dead in ([0, 6, 12], [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 90]):
        check_auxiliary(dead)
    check_parts()
    distributed.destroy_process_group()
    print("equal")


main()
