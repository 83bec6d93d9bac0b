"""When features count as dead, and that a step looks for them only when one may be."""

import torch

from common.distributed import Ranks
from train import step as train_step_module
from train.arrays.optim import Moments
from train.arrays.parameters import random_parameters
from train.arrays.workspace import Workspace
from train.config import TrainSettings
from train.dead import count_tokens_, dead_features, tokens_left
from train.resolved import resolve
from train.step import Recipe, State, train_step

ROWS, WIDTH, DICT_SIZE = 32, 12, 64


def test_tokens_left_is_when_the_longest_silent_feature_dies():
    since_fired = torch.tensor([0, 70, 20])
    assert tokens_left(since_fired, after_tokens=100) == 30
    count_tokens_(since_fired, torch.tensor([True, False, False]), tokens=29)
    assert dead_features(since_fired, after_tokens=100).tolist() == []
    count_tokens_(since_fired, torch.tensor([False, False, False]), tokens=1)
    assert dead_features(since_fired, after_tokens=100).tolist() == [1]
    assert tokens_left(since_fired, after_tokens=100) == 0


def trained(*, always_look, looks, monkeypatch):
    """The state after steps in which features die, and the numbers of the steps that looked for dead ones."""
    stated = TrainSettings(prefixes=(16, DICT_SIZE), top_k=4, lr=0.01, steps=24, dead_after_tokens=5 * ROWS)
    recipe = Recipe.of(resolve(stated, model="", d_target=WIDTH), target_variance=float(WIDTH))
    weights = random_parameters(WIDTH, WIDTH, dict_size=DICT_SIZE, seed=3)
    weights.b_enc[7] = -100.0
    state = State(weights, Moments.zero(weights), torch.zeros(DICT_SIZE, dtype=torch.int64))
    workspace = Workspace.like(weights, rows=ROWS, rule=recipe.nested.rule)
    look = train_step_module.tokens_left
    monkeypatch.setattr(
        train_step_module, "tokens_left", lambda *given, **named: (looks.append(state.step), look(*given, **named))[1]
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(24):
        source, target = torch.randn(2, ROWS, WIDTH, generator=generator)
        if always_look:
            state.none_dead_before = 0
        train_step(state, source, target=target, recipe=recipe, workspace=workspace, ranks=Ranks())
    monkeypatch.undo()
    return state


def test_looking_only_when_a_feature_may_be_dead_changes_nothing(monkeypatch):
    rare, every = [], []
    state = trained(always_look=False, looks=rare, monkeypatch=monkeypatch)
    same = trained(always_look=True, looks=every, monkeypatch=monkeypatch)
    assert every == list(range(24))
    assert rare[:2] == [0, 5], "nothing can be dead before five batches went by"
    assert (state.since_fired >= 5 * ROWS).any()
    assert torch.equal(state.since_fired, same.since_fired)
    for name, array in state.weights.tensors().items():
        assert torch.equal(array, same.weights.tensors()[name]), name
