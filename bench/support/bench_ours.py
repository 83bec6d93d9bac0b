"""nestcoder's own training step over a problem of step_systems.py: everything between two batches but logging."""

from collections.abc import Callable
from typing import Any

import torch

from common.distributed import Ranks
from train.arrays.optim import Moments
from train.arrays.parameters import Parameters
from train.arrays.workspace import Workspace
from train.config import TrainSettings
from train.resolved import resolve
from train.step import Recipe, State, train_step

_DEAD_AFTER = 10**9


def training_step(of: Any, *, dead_share: float, **changes: Any) -> Callable[[], object]:
    """A whole step: forward, loss, backward, clipping, Adam, unit decoder rows, counting of dead features."""
    rows, width, dict_size = of.sizes
    device = of.source.device
    stated = TrainSettings(prefixes=of.prefixes, top_k=of.top_k, lr=1e-4, dead_after_tokens=_DEAD_AFTER, **changes)
    settings = resolve(stated, model="", d_target=width)
    weights = Parameters(of.encoder.clone(), of.bias.clone(), of.decoder.clone(), torch.zeros(width, device=device))
    since_fired = torch.zeros(dict_size, dtype=torch.int64, device=device)
    _kill(weights, since_fired, share=dead_share)
    state = State(weights, Moments.zero(weights), since_fired)
    recipe = Recipe.of(settings, target_variance=float(of.target.var(dim=0).sum()))
    dtype = getattr(torch, settings.compute_dtype)
    space = Workspace.like(weights, rows=rows, dtype=dtype, rule=recipe.nested.rule)
    return lambda: train_step(state, of.source, target=of.target, recipe=recipe, workspace=space, ranks=Ranks())


def _kill(weights: Parameters, since_fired: torch.Tensor, *, share: float) -> None:
    """Let a share of the features, spread over the dictionary, be dead: too low a bias to be among the largest."""
    dead = torch.randperm(len(since_fired), generator=torch.Generator().manual_seed(1))[: int(share * len(since_fired))]
    dead = dead.to(since_fired.device)
    weights.b_enc[dead] -= 10
    since_fired[dead] = 2 * _DEAD_AFTER
