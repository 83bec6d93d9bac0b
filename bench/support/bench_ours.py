"""nestcoder's own training step over a problem of step_systems.py: everything between two batches but logging."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from common.distributed import Ranks
from common.progress import Silent
from train.arrays.graphs import Graphs
from train.arrays.optim import Moments
from train.arrays.parameters import Parameters
from train.arrays.workspace import Workspace
from train.config import TrainSettings
from train.kinds.joint_state import JointState
from train.kinds.joint_step import JointRecipe, joint_step
from train.objective import Recipe
from train.resolved import resolve
from train.state import State
from train.step import train_step
from transcoder.cross_layer import Reach

_DEAD_AFTER = 10**9


def training_step(
    problem: Any, *, dead_share: float, plain: bool = False, revived: bool = False, **changes: Any
) -> Callable[[], object]:
    """A whole step: forward, loss, backward, clipping, Adam, unit decoder rows, counting of dead features.

    As a training takes it, so on a GPU recorded as a CUDA graph, unless ``plain``. A ``dead_share`` of the features
    stays dead: it is not revived, or with ``revived`` is counted as dead again before every step.
    """
    rows, width, dict_size = problem.sizes
    device = problem.source.device
    fixed = {"lr": 1e-4, "dead_after_tokens": _DEAD_AFTER, "batch_rows": rows, "warmup_steps": 0}
    if dead_share and not revived:
        fixed["revive"] = False
    stated = TrainSettings(prefixes=problem.prefixes, top_k=problem.top_k, **fixed, **changes)
    settings = resolve(stated, model="", d_target=width)
    weights = Parameters(
        problem.encoder.clone(), problem.bias.clone(), problem.decoder.clone(), torch.zeros(width, device=device)
    )
    since_fired = torch.zeros(dict_size, dtype=torch.int64, device=device)
    dead = _killed(weights, since_fired, share=dead_share)
    state = State(weights, Moments.zero(weights), since_fired)
    recipe = Recipe.from_settings(settings, variance=problem.target.var(dim=0).cpu(), device=str(device))
    dtype = getattr(torch, settings.compute_dtype)
    space = Workspace.like(weights, rows=rows, dtype=dtype, rule=recipe.nested.rule)
    graphs = Graphs(device, _Loud()) if device.type == "cuda" and not plain else None
    shared = {"recipe": recipe, "workspace": space, "ranks": Ranks(), "graphs": graphs}

    def step() -> object:
        if revived:
            since_fired.index_fill_(0, dead, 2 * _DEAD_AFTER)
        return train_step(state, problem.source, target=problem.target, **shared)

    return step


def joint_training_step(problem: Any, layers: Sequence[Any], *, window: int, **changes: Any) -> Callable[[], object]:
    """The same of a cross-layer transcoder, whose ``layers`` are those of cross_layer_steps.py; on a CPU."""
    rows, width, dict_size = problem.sizes
    fixed = {"lr": 1e-4, "dead_after_tokens": _DEAD_AFTER, "batch_rows": rows, "warmup_steps": 0}
    stated = TrainSettings(
        kind="cross-layer", prefixes=problem.prefixes, top_k=problem.top_k, window=window, **fixed, **changes
    )
    settings = resolve(stated, model="", d_target=width)
    states: list[State] = []
    for layer in layers:
        own = (layer.encoder.clone(), layer.bias.clone(), layer.decoder.clone())
        weights = Parameters(*own, torch.zeros(layer.decoder.shape[1]))
        states.append(State(weights, Moments.zero(weights), torch.zeros(dict_size, dtype=torch.int64)))
    recipes = [Recipe.from_settings(settings, variance=layer.target.var(dim=0), device="cpu") for layer in layers]
    rule = recipes[0].nested.rule
    spaces = [Workspace.like(state.weights, rows=rows, dtype=torch.float32, rule=rule) for state in states]
    for space in spaces[1:]:
        space.pre = spaces[0].pre  # as a training shares it
    state = JointState(tuple(states), tuple(range(len(layers))))
    given = {
        "targets": [layer.target for layer in layers],
        "recipe": JointRecipe(tuple(recipes), Reach(len(layers), window, width), over_layers=False),
        "workspaces": spaces,
        "ranks": Ranks(),
    }

    def step() -> object:
        return joint_step(state, [layer.source for layer in layers], **given)

    step.state = state  # for the test that compares it
    return step


class _Loud(Silent):
    """A step that cannot be recorded is no row of its own, but a failure."""

    def note(self, text: str) -> None:
        raise RuntimeError(text)


def _killed(weights: Parameters, since_fired: torch.Tensor, *, share: float) -> torch.Tensor:
    """Features, spread over the dictionary, that are dead from now on: too low a bias to be among the largest."""
    dead = torch.randperm(len(since_fired), generator=torch.Generator().manual_seed(1))[: int(share * len(since_fired))]
    dead = dead.to(since_fired.device)
    weights.b_enc[dead] -= 10
    since_fired[dead] = 2 * _DEAD_AFTER
    return dead
