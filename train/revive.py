"""Dead features begin again, each from a row of the batch that is drawn for it.

With x the source of the row less the batch's mean, and e what the dictionary leaves unexplained of its target,

    W_enc[f] = 0.5 * x / |x|     W_dec[f] = e / |e|     b_enc[f] = what makes f just fire on this row

so a feature begins as "where the source is like this row's, add what was missing there". The auxiliary loss alone does
not do: it has no gradient for a feature whose pre-activation is positive on no row, and of the demo's dead features
that were nearly all. Adam's moments are kept: without them the first steps would be three times too long.

Rows are drawn by the step and the feature's number, so a run that is resumed, or dealt over processes, draws the same.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from train.loss import StepResult
from train.optim import learning_rate
from train.parameters import Parameters
from train.ranks import Part
from train.resolved import ResolvedSettings
from transcoder.sharded import WHOLE, Shard
from transcoder.sparse_code import SparseCode

_ENCODER_NORM = 0.5
_NO_DIRECTION = 1e-5
# Above the row's threshold by so little: the feature fires there, and on few rows besides.
_MARGIN = 1e-4


def may_revive(settings: ResolvedSettings, step: int) -> bool:
    """Whether features are revived at a step: while a third of the full rate is left for them to learn by."""
    return settings.revive and 3 * learning_rate(settings, step) >= settings.lr


def revive_(
    weights: Parameters,
    source: Float[Tensor, "rows d_source"],
    *,
    result: StepResult,
    dead: Int[Tensor, " dead"],
    step: int,
    part: Part,
    shard: Shard = WHOLE,
) -> None:
    """Give the features ``dead`` new weights, in place. Every process takes part, those without dead features too.

    ``result`` is the step's on these rows. A feature whose row has no direction is left as it is.
    """
    rows = _drawn_rows(dead, step=step, part=part, shard=shard)
    columns = [source, -result.residual, _thresholds(result.code, shard)[:, None]]
    drawn, mean = _gathered(torch.cat([column.to(weights.b_enc.dtype) for column in columns], dim=1), rows, part=part)
    widths = [source.shape[1], result.residual.shape[1], 1]
    x, e, threshold = drawn.split(widths, dim=1)

    direction = x - mean[: source.shape[1]]
    length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    missing = torch.linalg.vector_norm(e, dim=1, keepdim=True)
    # A source that is the mean but for rounding has no direction, only noise.
    usable = ((length > _NO_DIRECTION * torch.linalg.vector_norm(x, dim=1, keepdim=True)) & (missing > 0)).flatten()
    encoder = (_ENCODER_NORM * direction / length)[usable]
    features = dead[usable]
    weights.W_enc[features] = encoder
    weights.b_enc[features] = (threshold.flatten()[usable] - (encoder * x[usable]).sum(dim=1)) + _MARGIN
    weights.W_dec[features] = (e / missing)[usable]


def _drawn_rows(dead: Int[Tensor, " dead"], *, step: int, part: Part, shard: Shard) -> Int[Tensor, " dead"]:
    """A row of the whole batch for each feature: different ones where the batch has a row for every feature."""
    order = torch.randperm(part.whole, generator=torch.Generator().manual_seed(step)).to(dead.device)
    number_in_dictionary = dead * shard.world + shard.rank
    return order[number_in_dictionary % part.whole]


def _thresholds(code: SparseCode, shard: Shard) -> Float[Tensor, " rows"]:
    """What a pre-activation must exceed to be among a row's: the least that is; 0 where there is none."""
    infinity = float("inf")
    own = torch.segment_reduce(code.values.float(), "min", offsets=code.offsets.long(), initial=infinity)
    least = shard.least_(own)
    return least.masked_fill(least == infinity, 0.0)


def _gathered(
    values: Float[Tensor, "rows width"], rows: Int[Tensor, " dead"], *, part: Part
) -> tuple[Float[Tensor, "dead width"], Float[Tensor, " width"]]:
    """The values of rows of the whole batch, whichever process has them, and the whole batch's mean."""
    own = rows - part.ranks.rows_before(part.rows, values.device)
    is_own = (own >= 0) & (own < part.rows)
    drawn = values.new_zeros(len(rows), values.shape[1])
    drawn[is_own] = values[own[is_own]]
    total = values.sum(dim=0) * bool(part.rows)
    part.ranks.sum_([drawn, total])
    return drawn, total / part.whole
