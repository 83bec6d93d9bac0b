"""Dead features begin again, each from a row of the batch that is drawn for it.

With x the source of the row less the batch's mean, and e what the dictionary leaves unexplained of its target,

    W_enc[f] = 0.5 * x / |x|     W_dec[f] = e / |e|     b_enc[f] = what makes f fire on 3 in 1,000 rows of the batch

so a feature begins as "where the source is like this row's, add what was missing there". The auxiliary loss alone does
not do: it has no gradient for a feature whose pre-activation is positive on no row, and of the demo's dead features
that were nearly all. Adam's moments are kept: without them the first steps would be three times too long.

Rows are drawn by the step and the feature's number, so a run that is resumed, or dealt over processes, draws the same.
docs/log.md has what else was tried.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from train.arrays.batch_share import BatchShare
from train.arrays.optim import learning_rate
from train.arrays.parameters import Parameters
from train.dead.aux_loss import product
from train.dead.features import Dead
from train.loss import StepResult
from train.resolved import ResolvedSettings
from transcoder.sharded import UNSHARDED, Shard
from transcoder.sparse_code import SparseCode

_ENCODER_NORM = 0.5
# Of the source's length: float32 has seven digits, and the difference of two equal ones keeps noise of this size.
_NO_DIRECTION = 1e-5
# A feature that fires on its own row alone was dead again soon; on one row in a hundred it was in the others' way.
_SHARE_OF_ROWS = 0.003
# A feature must exceed its threshold by something that rounding cannot take away.
_MARGIN = 1e-4


def may_revive(settings: ResolvedSettings, step: int) -> bool:
    """Whether features are revived at a step: while a third of the full rate is left for them to learn by."""
    return settings.revive and 3 * learning_rate(settings, step) >= settings.lr


def drawn_order(step: int, rows: int) -> Int[Tensor, " rows"]:
    """The rows of a whole batch in the order in which features draw them at a step; on the CPU, wherever it trains."""
    return torch.randperm(rows, generator=torch.Generator().manual_seed(step))


def revive_(
    weights: Parameters,
    source: Float[Tensor, "rows d_source"],
    *,
    result: StepResult,
    dead: Dead,
    order: Int[Tensor, " whole"],
    share: BatchShare,
    shard: Shard = UNSHARDED,
    rounded: Parameters | None = None,
) -> None:
    """Give the features ``dead`` new weights, in place. Every process takes part, those without dead features too.

    ``result`` is the step's on these rows, ``order`` the step's ``drawn_order``. A feature whose row has no direction
    is left as it is. ``rounded`` is a copy of the weights in another dtype that gets the new ones too.
    """
    # Different rows where the batch has one for every feature.
    number_in_dictionary = dead.features * shard.world + shard.rank
    rows = order[number_in_dictionary % share.batch_rows]
    values = torch.cat([source.to(weights.b_enc.dtype), -result.residual], dim=1)
    drawn, mean = _gathered(values, rows, share=share)
    x, missing = drawn.split([source.shape[1], result.residual.shape[1]], dim=1)
    direction = x - mean[: source.shape[1]]

    length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    missing_length = torch.linalg.vector_norm(missing, dim=1, keepdim=True)
    # A source that is the mean but for rounding has no direction, only noise.
    has_direction = length > _NO_DIRECTION * torch.linalg.vector_norm(x, dim=1, keepdim=True)
    usable = (has_direction & (missing_length > 0)).flatten()
    encoder = _ENCODER_NORM * direction / length.clamp(min=1e-30)
    thresholds = _thresholds(result.code, shard)
    if weights.threshold is not None:
        thresholds = weights.threshold[dead.features][None]
    bias = _firing_bias(encoder, source, thresholds=thresholds, dtype=result.code.values.dtype, share=share)

    for arrays in (weights, rounded):
        if arrays is not None:
            dead.give_(arrays.W_enc, encoder, mask=usable)
            dead.give_(arrays.b_enc, bias, mask=usable)
            dead.give_(arrays.W_dec, missing / missing_length, mask=usable)


def _thresholds(code: SparseCode, shard: Shard) -> Float[Tensor, "rows 1"]:
    """What a pre-activation must exceed to be among a row's: the least that is; 0 where there is none."""
    infinity = float("inf")
    own = torch.segment_reduce(code.values.float(), "min", offsets=code.offsets.long(), initial=infinity)
    lowest = shard.min_(own)
    return lowest.masked_fill(lowest == infinity, 0.0)[:, None]


def _firing_bias(
    encoder: Float[Tensor, "dead d_source"],
    source: Float[Tensor, "rows d_source"],
    *,
    thresholds: Float[Tensor, "..."],
    dtype: torch.dtype,
    share: BatchShare,
) -> Float[Tensor, " dead"]:
    """The bias with which each feature exceeds the threshold, of the row or of its own, on its share of the whole
    batch's rows."""
    count = max(1, round(_SHARE_OF_ROWS * share.batch_rows))
    # On a GPU in the dtype of the selection that the bias is for; it is the longest product of a revival.
    dtype = encoder.dtype if source.device.type == "cpu" else dtype
    wanted = thresholds - product(source.to(dtype), encoder.to(dtype).T)
    smallest = wanted[: share.rows].topk(min(count, share.rows), dim=0, largest=False).values
    padded = encoder.new_full((count, len(encoder)), float("inf"))
    padded[: len(smallest)] = smallest
    return share.ranks.gathered(padded).flatten(0, 1).kthvalue(count, dim=0).values + _MARGIN


def _gathered(
    values: Float[Tensor, "rows width"], rows: Int[Tensor, " dead"], *, share: BatchShare
) -> tuple[Float[Tensor, "dead width"], Float[Tensor, " width"]]:
    """The values of rows of the whole batch, whichever process has them, and the whole batch's mean."""
    own = rows - share.rows_before(values.device)
    is_own = (own >= 0) & (own < share.rows)
    drawn = torch.where(is_own[:, None], values[own.clamp(0, len(values) - 1)], 0.0)
    total = values.sum(dim=0) * bool(share.rows)
    share.ranks.sum_all_([drawn, total])
    return drawn, total / share.batch_rows
