"""Three processes, forks of this one, that exchange numbers by gloo; argument: a file where they meet."""

import os
import sys

import pytest
import torch
from torch import distributed

from common.distributed import Ranks
from common.errors import DiskError

WORLD = 3


def exchange() -> None:
    ranks = Ranks.current()
    rank = ranks.rank
    assert ranks == Ranks(rank, WORLD)
    assert ranks.sum_(torch.tensor([1.0, rank])).tolist() == [3, 3]
    assert ranks.min_(torch.tensor([rank, -rank])).tolist() == [0, -2]
    arrays = [torch.full((2, 2), rank), torch.tensor(0.5), torch.tensor([rank, 1])]
    ranks.sum_all_(arrays)
    assert [array.tolist() for array in arrays] == [[[3, 3], [3, 3]], 1.5, [3, 3]]
    numbers = ranks.total(rank + 1, "cpu"), ranks.smallest(rank + 1, "cpu"), ranks.largest(rank + 1, "cpu")
    assert numbers == (6, 1, 3)
    assert ranks.any_of(torch.tensor([rank == 1, False])).tolist() == [True, False]
    assert ranks.gathered(torch.tensor([rank, 7])).tolist() == [[0, 7], [1, 7], [2, 7]]
    state = {"number": torch.tensor([10**rank])}
    joined = ranks.merged(state, lambda one, other: {"number": torch.cat([one["number"], other["number"]])})
    assert joined["number"].tolist() == [1, 10, 100]
    ranks.wait()
    if rank == WORLD - 1:
        os._exit(0)  # gone without a word
    with pytest.raises(DiskError, match="Another process of this run has stopped"):
        ranks.wait()


def main() -> None:
    children: list[int] = []
    for rank in range(WORLD):
        child = os.fork()
        if not child:
            distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=WORLD)
            exchange()
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * WORLD


main()
