"""The rows of a batch that a process has: all processes take the step of one process with all rows."""

from itertools import accumulate, pairwise

import pytest
import torch

from common.distributed import ALONE, Ranks
from train.arrays.batch_share import BatchShare
from train.arrays.optim import Moments
from train.arrays.parameters import random_parameters
from train.arrays.workspace import Workspace
from train.config import TrainSettings
from train.objective import Recipe
from train.resolved import resolve
from train.state import State
from train.step import train_step
from transcoder.sharded import winners

PREFIXES = (9, 20, 64)
SPLITS = {2: ((29, 0), (4, 25), (0, 0)), 3: ((0, 17, 12), (28, 0, 1), (9, 10, 10))}


def state():
    """Every fourth feature is dead, so that the auxiliary loss is not zero."""
    weights = random_parameters(12, 10, dict_size=64, skip=True, seed=1)
    weights.b_enc[::4] -= 2
    silent = torch.zeros(64, dtype=torch.int64)
    silent[::4] = 10**6
    return State(weights, Moments.zero(weights), silent)


def step(training, source, target, *, activation, ranks):
    stated = TrainSettings(
        prefixes=PREFIXES, top_k=6, lr=1e-3, activation=activation, warmup_steps=0, dead_after_tokens=10**5
    )
    recipe = Recipe.from_settings(resolve(stated, model="", d_target=10), variance=torch.full((10,), 0.75))
    space = Workspace.like(training.weights, rows=29, rule=recipe.nested.rule)
    metrics = train_step(training, source, target=target, recipe=recipe, workspace=space, ranks=ranks)
    return {key: value for key, value in metrics.as_dict().items() if key != "lr"}


def check(ranks, split, activation):
    """Rows of very different size, so that under batchtopk processes have very different numbers of active features."""
    generator = torch.Generator().manual_seed(sum(split))
    source, target = (torch.randn(sum(split), width, generator=generator) for width in (12, 10))
    source *= torch.linspace(0.1, 2, sum(split))[:, None]
    first, last = list(pairwise((0, *accumulate(split))))[ranks.rank]
    alone, mine = state(), state()
    expected = step(alone, source, target, activation=activation, ranks=ALONE)
    shared = step(mine, source[first:last], target[first:last], activation=activation, ranks=ranks)
    for key, value in expected.items():
        torch.testing.assert_close(torch.tensor(shared[key]), torch.tensor(value), rtol=1e-5, atol=1e-6, msg=key)
    for name, moment in alone.moments.first.items():  # a tenth of the gradient
        assert float((mine.moments.first[name] - moment).norm()) <= 1e-6 * float(moment.norm()), name
    assert torch.equal(mine.since_fired, alone.since_fired)
    assert (mine.tokens, mine.step) == (alone.tokens, 1) == (sum(split), 1)


def check_ties(ranks, dtype):
    """Few distinct values, and processes without rows: selected features are the first of a stable sort."""
    generator = torch.Generator().manual_seed(5)
    counts = [5, 0, 4][: ranks.world]
    offered = [torch.randint(0, 3, (40, own), generator=generator).to(dtype) for own in counts]
    won = winners(offered[ranks.rank], 5, ranks=ranks)
    order = torch.cat(offered, dim=1).sort(dim=1, descending=True, stable=True).indices[:, :5]
    expected = torch.zeros(40, sum(counts), dtype=torch.bool).scatter(1, order, True)
    assert torch.equal(won, expected.split(counts, dim=1)[ranks.rank])
    offered[0][7, 2] = torch.nan
    assert bool(winners(offered[ranks.rank], 5, ranks=ranks)[7].all())


@pytest.mark.parametrize("world", [2, 3])
def test_processes_that_share_a_batch_in_any_way_take_the_step_of_one(world, in_processes):
    assert in_processes(world, check_parts) == [0] * world


def check_parts():
    ranks = Ranks.current()
    for split in SPLITS[ranks.world]:
        for activation in ("topk", "batchtopk"):
            check(ranks, split, activation)
    for dtype in (torch.float32, torch.bfloat16):
        check_ties(ranks, dtype)


def test_one_process_has_the_whole_batch() -> None:
    share = BatchShare.from_rows(7, ALONE, torch.device("cpu"))
    assert share == BatchShare(rows=7, batch_rows=7)
    assert (share.fraction, share.rows_before(torch.device("cpu"))) == (1, 0)


def test_a_process_without_rows_counts_no_row() -> None:
    assert BatchShare(0, 12).fraction == 0
    assert BatchShare(3, 12).fraction == 0.25
    assert BatchShare(0, 0).fraction == 0
