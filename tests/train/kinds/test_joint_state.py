"""The state of several layers: its arrays by name and back, shared among processes and gathered again."""

import torch

from train.arrays.parameters import random_parameters
from train.config import TrainSettings
from train.kinds.joint_state import JointState
from train.kinds.single import fresh_state
from train.resolved import resolve
from transcoder.sharded import UNSHARDED, Shard


def make() -> JointState:
    settings = resolve(TrainSettings(prefixes=(4, 10), top_k=2, steps=4), model="", d_target=6)
    layers = []
    for number, targets in enumerate((2, 1)):
        state = fresh_state(random_parameters(6, targets * 6, dict_size=10, seed=number), settings)
        state.since_fired += torch.arange(10) + 100 * number
        layers.append(state)
    return JointState(tuple(layers), (3, 12))


def test_arrays_come_back_by_the_number_of_their_layer() -> None:
    state = make()
    arrays = state.arrays()
    assert {name.partition("/")[0] for name in arrays} == {"3", "12"}
    back = JointState.of_arrays(arrays, step=7, tokens=70)
    assert (back.numbers, back.step, back.tokens) == ((3, 12), 7, 70)
    assert torch.equal(back.layers[1].weights.W_dec, state.layers[1].weights.W_dec)
    assert torch.equal(back.since_fired, state.since_fired)


def test_every_process_has_some_features_of_every_layer() -> None:
    state = make()
    dealt = state.dealt(Shard(rank=1, world=3), device="cpu")
    for own, full in zip(dealt.layers, state.layers, strict=True):
        assert torch.equal(own.weights.W_dec, full.weights.W_dec[1::3])
        assert torch.equal(own.weights.b_dec, full.weights.b_dec)
        assert torch.equal(own.since_fired, full.since_fired[1::3])
    assert torch.equal(state.gathered(UNSHARDED, dict_size=10).since_fired, state.since_fired)
