"""The state of a training, shared among processes and gathered again."""

import torch

from train.arrays.optim import Moments
from train.arrays.parameters import random_parameters
from train.state import State
from transcoder.sharded import UNSHARDED


def test_one_process_owns_all_of_it():
    weights = random_parameters(4, 3, dict_size=6, seed=0)
    state = State(weights, Moments.zero(weights), torch.arange(6), step=3, tokens=40)
    assert state.device == torch.device("cpu")
    dealt = state.dealt(UNSHARDED, device="cpu").gathered(UNSHARDED, dict_size=6)
    assert (dealt.step, dealt.tokens, dealt.room) == (3, 40, None)
    assert torch.equal(dealt.since_fired, state.since_fired)
    for name, array in weights.tensors().items():
        assert torch.equal(dealt.weights.tensors()[name], array)
        assert not dealt.moments.first[name].any()
