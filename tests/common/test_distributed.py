"""What torchrun says about this process, and what several exchange."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.distributed import ALONE, Ranks, process_group, read_ranks
from common.errors import UsageError


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


def test_three_processes_exchange_and_notice_one_that_is_gone(tmp_path: Path) -> None:
    script = Path(__file__).with_name("exchange_process.py")
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(tmp_path / "meeting")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_one_process_alone_keeps_what_it_has() -> None:
    array = torch.tensor([1.0, 2.0])
    ALONE.sum_all_([array])
    assert ALONE.min_(ALONE.sum_(array)).tolist() == [1, 2]
    assert ALONE.gathered(array).tolist() == [[1, 2]]
    assert (ALONE.total(3, "cpu"), ALONE.smallest(3, "cpu"), ALONE.largest(3, "cpu")) == (3, 3, 3)
    assert ALONE.any_of(array > 1).tolist() == [False, True]
    assert ALONE.merged({"sum": array}, lambda a, b: a | b) == {"sum": array}
