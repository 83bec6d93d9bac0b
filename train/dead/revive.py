"""Dead features start again, each from a randomly drawn row of the batch.

With x the row's source minus the batch's mean, and e the part of its target that the dictionary does not explain,

    W_enc[f] = 0.5 * x / |x|     W_dec[f] = e / |e|     b_enc[f] = what makes f fire on 3 in 1,000 rows of the batch

so a feature starts as "where the source is like this row's, add what was missing there". The auxiliary loss is not
enough: it has no gradient for a feature whose pre-activation is positive on no row, as with nearly all dead features of
the demo. Adam's moments are kept: without them the first steps would be three times too long.

The draw depends only on the step and the feature's number, so a run that is resumed or divided among processes draws
the same rows. docs/log.md tells what else was tried.
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

# Length of a revived feature's encoder row, in training units.
_ENCODER_NORM = 0.5
# Share of the source's length: float32 has seven digits, so the difference of two equal rows is noise of this size.
_NO_DIRECTION = 1e-5
# With fewer rows, revived features were soon dead again; with one row in a hundred they took the place of others.
_SHARE_OF_ROWS = 0.003
# A feature must exceed its threshold by more than rounding errors.
_MARGIN = 1e-4


def may_revive(settings: ResolvedSettings, step: int) -> bool:
    """Whether features are revived at a step: while the learning rate is at least a third of the full one."""
    return settings.revive and 3 * learning_rate(settings, step) >= settings.lr


def drawn_order(step: int, rows: int) -> Int[Tensor, " rows"]:
    """The rows of a whole batch in the order in which features draw them at a step; always drawn on the CPU."""
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

    ``result`` is the step's result on these rows, ``order`` its ``drawn_order``. A feature whose row has no direction
    does not change. ``rounded`` is a copy of the weights in another dtype, which gets the new weights too.
    """
    # Different rows for all features, if the batch has enough rows.
    number_in_dictionary = dead.features * shard.world + shard.rank
    rows = order[number_in_dictionary % share.batch_rows]
    values = torch.cat([source.to(weights.b_enc.dtype), -result.residual], dim=1)
    drawn, mean = _gathered(values, rows, share=share)
    x, missing = drawn.split([source.shape[1], result.residual.shape[1]], dim=1)
    direction = x - mean[: source.shape[1]]

    length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
    missing_length = torch.linalg.vector_norm(missing, dim=1, keepdim=True)
    # A source that equals the mean up to rounding has no direction, only noise.
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
    """What a pre-activation must exceed to be selected in a row: the row's smallest selected value; 0 if there is
    none."""
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
    """The bias with which each feature exceeds the threshold (of the row, or its own) on ``_SHARE_OF_ROWS`` of the
    whole batch."""
    count = max(1, round(_SHARE_OF_ROWS * share.batch_rows))
    # On a GPU in the dtype of the selection, for which the bias is made: it is the largest product of a revival.
    dtype = encoder.dtype if source.device.type == "cpu" else dtype
    wanted = thresholds - product(source.to(dtype), encoder.to(dtype).T)
    smallest = wanted[: share.rows].topk(min(count, share.rows), dim=0, largest=False).values
    padded = encoder.new_full((count, len(encoder)), float("inf"))
    padded[: len(smallest)] = smallest
    return share.ranks.gathered(padded).flatten(0, 1).kthvalue(count, dim=0).values + _MARGIN


def _gathered(
    values: Float[Tensor, "rows width"], rows: Int[Tensor, " dead"], *, share: BatchShare
) -> tuple[Float[Tensor, "dead width"], Float[Tensor, " width"]]:
    """The values of drawn rows, from whichever process has them, and the mean over the whole batch."""
    own = rows - share.rows_before(values.device)
    is_own = (own >= 0) & (own < share.rows)
    drawn = torch.where(is_own[:, None], values[own.clamp(0, len(values) - 1)], 0.0)
    total = values.sum(dim=0) * bool(share.rows)
    share.ranks.sum_all_([drawn, total])
    return drawn, total / share.batch_rows
