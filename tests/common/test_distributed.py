"""What torchrun says about this process, and what several exchange."""

import os
from collections.abc import Callable

import pytest
import torch

from common.distributed import ALONE, Ranks, process_group, read_ranks
from common.errors import DiskError, UsageError

WORLD = 3


def test_one_process_alone_is_rank_0_of_1() -> None:
    assert read_ranks({}) == Ranks(rank=0, world=1, local=0)
    assert read_ranks({}).device("cuda") == "cuda"
    with process_group(read_ranks({}), "cpu"):
        pass


def test_torchrun_is_understood() -> None:
    ranks = read_ranks({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert ranks == Ranks(rank=5, world=8, local=1)
    assert ranks.device("cuda") == "cuda:1"
    assert ranks.device("cpu") == "cpu"
    assert ranks.device("auto") in {"auto", "cuda:1"}
    assert ranks.device("cuda:3") == "cuda:3"


@pytest.mark.parametrize("environment", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x"}, {"RANK": "-1"}])
def test_contradictions_are_refused(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        read_ranks(environment)


def exchange() -> None:
    """Every exchange; then the last process ends, and the others notice."""
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
    joined = ranks.merged(state, lambda first, second: {"number": torch.cat([first["number"], second["number"]])})
    assert joined["number"].tolist() == [1, 10, 100]
    ranks.wait()
    if rank == WORLD - 1:
        os._exit(0)  # ends without a message
    with pytest.raises(DiskError, match="Another process of this run has stopped"):
        ranks.wait()


def test_three_processes_exchange_and_notice_one_that_ended(in_processes: Callable[..., list[int]]) -> None:
    assert in_processes(WORLD, exchange) == [0] * WORLD


def test_one_process_alone_keeps_what_it_has() -> None:
    array = torch.tensor([1.0, 2.0])
    ALONE.sum_all_([array])
    assert ALONE.min_(ALONE.sum_(array)).tolist() == [1, 2]
    assert ALONE.gathered(array).tolist() == [[1, 2]]
    assert (ALONE.total(3, "cpu"), ALONE.smallest(3, "cpu"), ALONE.largest(3, "cpu")) == (3, 3, 3)
    assert ALONE.any_of(array > 1).tolist() == [False, True]
    assert ALONE.merged({"sum": array}, lambda a, b: a | b) == {"sum": array}
