"""What torchrun says about this process."""

import pytest

from common.errors import UsageError
from nestcoder.ranks import Ranks, process_group, read_ranks


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
