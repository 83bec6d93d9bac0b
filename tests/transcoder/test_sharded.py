"""Which features a process owns; tests/train/test_sharded.py trains with it."""

import pytest
import torch

from common.errors import UsageError
from train.arrays.parameters import random_parameters
from transcoder.sharded import Shard


def test_features_go_to_the_processes_in_turn():
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
    assert torch.equal(Shard().gathered_arrays(weights.tensors(), dict_size=10)["W_enc"], weights.W_enc)
