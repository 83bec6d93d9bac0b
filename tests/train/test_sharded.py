import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.errors import UsageError
from common.progress import Silent
from train.arrays.parameters import random_parameters
from train.config import LogSettings, TrainSettings
from train.record.log import read_log
from train.run import train_layer
from transcoder.formats.native import load_transcoder
from transcoder.sharded import Shard


def run_processes(script: str, world: int, arguments: list[str]) -> list[str]:
    """What so many processes of a script in this folder say, told their rank, the world and the arguments."""
    here, root = Path(__file__).parent, Path(__file__).parents[2]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(here / script), str(rank), str(world), *arguments],
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    answers = [process.communicate(timeout=280) for process in processes]
    assert not any(process.returncode for process in processes), [error for _, error in answers]
    return [answer.strip() for answer, _ in answers]


@pytest.mark.parametrize("world", [2, 3])
def test_the_step_of_several_processes_is_the_single_process_step(world, tmp_path):
    assert run_processes("sharded_process.py", world, [str(tmp_path / "meet")]) == ["equal"] * world


def test_features_are_dealt_in_turn():
    shards = [Shard(rank, 3) for rank in range(3)]
    for features in range(20):
        owned = [len(range(rank, features, 3)) for rank in range(3)]
        assert [shard.owned(features) for shard in shards] == owned
    weights = random_parameters(4, 5, dict_size=10, skip=True)
    assert torch.equal(shards[1].take(weights.tensors())["W_dec"], weights.W_dec[[1, 4, 7]])
    assert torch.equal(shards[2].take(weights.tensors())["W_enc"], weights.W_enc[[2, 5, 8]])


def test_a_share_too_small_for_a_row_is_refused():
    Shard(0, 4).check(dict_size=64, top_k=16)
    with pytest.raises(UsageError, match="top_k 17 exceeds the 16 features"):
        Shard(0, 4).check(dict_size=64, top_k=17)


def test_one_process_is_the_whole_dictionary():
    weights = random_parameters(4, 5, dict_size=10)
    assert Shard().prefixes((3, 10)) == (3, 10)
    assert torch.equal(Shard().whole(weights.tensors(), dict_size=10)["W_enc"], weights.W_enc)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_sharded_training_is_one_process_training(activation, small_cache, quick, tmp_path):
    settings = TrainSettings.model_validate(quick.model_dump() | {"activation": activation, "skip": True})
    train_layer(
        cache=small_cache,
        out=tmp_path / "one",
        settings=settings,
        device="cpu",
        fresh=False,
        progress=Silent(),
        log=LogSettings(),
    )
    dealt = settings.model_copy(update={"shard_dictionary": True}).model_dump_json()
    arguments = [str(tmp_path / "meet"), str(small_cache), str(tmp_path / "two"), dealt]
    assert run_processes("sharded_training_process.py", 2, arguments) == ["trained"] * 2
    one, two = (load_transcoder(tmp_path / name) for name in ("one", "two"))
    for name, expected in one.arrays().items():
        torch.testing.assert_close(two.arrays()[name], expected, rtol=2e-3, atol=2e-4)
    logs = [read_log(tmp_path / name / "metrics.jsonl") for name in ("one", "two")]
    assert any(line.get("aux_loss") for line in logs[0])
    for alone, sharded in zip(*logs, strict=True):
        for key, value in alone.items():
            assert value == pytest.approx(sharded[key], rel=1e-3, abs=1e-6), key
