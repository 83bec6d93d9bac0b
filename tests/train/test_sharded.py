import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cache.errors import UsageError
from train.sharded import Shard
from train.weights import random_weights

PROCESS = Path(__file__).with_name("sharded_process.py")
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("world", [2, 3])
def test_the_sharded_step_is_the_single_process_step(world, tmp_path):
    commands = [[sys.executable, str(PROCESS), str(rank), str(world), str(tmp_path / "meet")] for rank in range(world)]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for command in commands
    ]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [out.decode().strip() for out, _ in answers] == ["equal"] * world, answers


def test_features_are_dealt_in_turn():
    shards = [Shard(rank, 3) for rank in range(3)]
    for features in range(20):
        owned = [len(range(rank, features, 3)) for rank in range(3)]
        assert [shard.owned(features) for shard in shards] == owned
    weights = random_weights(4, 5, dict_size=10, skip=True)
    assert torch.equal(shards[1].take(weights).W_dec, weights.W_dec[[1, 4, 7]])
    assert torch.equal(shards[2].take(weights).W_enc, weights.W_enc[:, [2, 5, 8]])


def test_a_share_too_small_for_a_row_is_refused():
    Shard(0, 4).check(dict_size=64, top_k=16)
    with pytest.raises(UsageError, match="top_k 17 exceeds the 16 features"):
        Shard(0, 4).check(dict_size=64, top_k=17)


def test_one_process_is_the_whole_dictionary():
    weights = random_weights(4, 5, dict_size=10)
    assert Shard().prefixes((3, 10)) == (3, 10)
    assert torch.equal(Shard().whole(weights, dict_size=10).W_enc, weights.W_enc)
