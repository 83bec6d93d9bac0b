"""nestcoder's own training step over a problem of step_systems.py: everything between two batches but logging."""

from collections.abc import Callable
from typing import Any

import torch

from common.distributed import Ranks
from common.progress import Silent
from train.arrays.graphs import Graphs
from train.arrays.optim import Moments
from train.arrays.parameters import Parameters
from train.arrays.workspace import Workspace
from train.config import TrainSettings
from train.resolved import resolve
from train.step import Recipe, State, train_step

_DEAD_AFTER = 10**9


def training_step(
    of: Any, *, dead_share: float, plain: bool = False, revived: bool = False, **changes: Any
) -> Callable[[], object]:
    """A whole step: forward, loss, backward, clipping, Adam, unit decoder rows, counting of dead features.

    As a training takes it, so on a GPU recorded as a CUDA graph, unless ``plain``. A ``dead_share`` of the features
    stays dead: it is not revived, or with ``revived`` is counted as dead again before every step.
    """
    rows, width, dict_size = of.sizes
    device = of.source.device
    fixed = {"lr": 1e-4, "dead_after_tokens": _DEAD_AFTER, "batch_rows": rows, "warmup_steps": 0}
    if dead_share and not revived:
        fixed["revive"] = False
    stated = TrainSettings(prefixes=of.prefixes, top_k=of.top_k, **fixed, **changes)
    settings = resolve(stated, model="", d_target=width)
    weights = Parameters(of.encoder.clone(), of.bias.clone(), of.decoder.clone(), torch.zeros(width, device=device))
    since_fired = torch.zeros(dict_size, dtype=torch.int64, device=device)
    dead = _killed(weights, since_fired, share=dead_share)
    state = State(weights, Moments.zero(weights), since_fired)
    recipe = Recipe.of(settings, variance=of.target.var(dim=0).cpu(), device=str(device))
    dtype = getattr(torch, settings.compute_dtype)
    space = Workspace.like(weights, rows=rows, dtype=dtype, rule=recipe.nested.rule)
    graphs = Graphs(device, _Loud()) if device.type == "cuda" and not plain else None
    shared = {"recipe": recipe, "workspace": space, "ranks": Ranks(), "graphs": graphs}

    def step() -> object:
        if revived:
            since_fired.index_fill_(0, dead, 2 * _DEAD_AFTER)
        return train_step(state, of.source, target=of.target, **shared)

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
