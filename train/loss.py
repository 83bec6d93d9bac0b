"""One step of the nested loss: reconstruct every prefix, and differentiate by hand.

    loss = sum over prefixes p of w_p * SSE_p / (rows * target_variance)   with  sum of w_p = 1

where SSE_p sums over rows and dimensions, and ``target_variance`` is the cache's total variance a row: the loss is the
weighted mean of the batch's fractions of variance unexplained, so learning rates carry over between layers and models.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from train.ranks import Part
from train.workspace import Workspace
from transcoder.constants import constant
from transcoder.decode import (
    Bags,
    Transposed,
    activation_gradients,
    bag_sums,
    bags_of,
    slopes_,
    transpose,
    weighted_sums_into,
)
from transcoder.sharded import WHOLE, Shard
from transcoder.sparse_code import Activation, Selection, ascending, largest, select_batchtopk
from transcoder.weights import Weights


@dataclass(frozen=True)
class NestedLoss:
    """What is asked of a step. ``prefix_weights`` sum to 1."""

    prefixes: tuple[int, ...]
    top_k: int
    target_variance: float
    prefix_weights: tuple[float, ...]
    activation: Activation = "topk"

    def weight_of(self, rows: int) -> tuple[float, ...]:
        """What a squared error of each prefix adds to the loss of a batch of this many rows."""
        return tuple(weight / (rows * self.target_variance) for weight in self.prefix_weights)

    @property
    def per_row(self) -> bool:
        """Whether a row's features are chosen among that row's alone."""
        return self.activation == "topk"

    def kept(self, rows: int) -> int:
        """How many entries a selection keeps: of a row, or of a whole batch."""
        return self.top_k if self.per_row else self.top_k * rows


@dataclass(frozen=True)
class StepResult:
    """``l0`` counts firing features a row, ``residual`` is the whole dictionary's reconstruction minus the target.

    ``watched`` holds the pre-activations of the features that were asked for.
    """

    loss: Float[Tensor, ""]
    sse: Float[Tensor, " prefixes"]
    l0: Float[Tensor, " prefixes"]
    fired: Bool[Tensor, " dict_size"]
    residual: Float[Tensor, "rows d_target"]
    selection: Selection
    gradients: Weights
    watched: Float[Tensor, "rows watched"]


def equal_weights(prefixes: tuple[int, ...]) -> tuple[float, ...]:
    """The paper's choice: every prefix counts the same."""
    return (1.0 / len(prefixes),) * len(prefixes)


@torch.no_grad()
def nested_step(
    weights: Weights,
    source: Float[Tensor, "rows d_source"],
    *,
    target: Float[Tensor, "rows d_target"],
    loss: NestedLoss,
    workspace: Workspace | None = None,
    project: bool = False,
    watch: Int[Tensor, " watched"] | None = None,
    part: Part | None = None,
    shard: Shard = WHOLE,
) -> StepResult:
    """The loss of a batch and its gradient, all prefixes from one sparse decode; top-k waits for no device.

    With a ``workspace`` the gradients are its arrays, overwritten by the next step. ``project`` leaves out of the
    decoder's gradient what points along its rows, which must then have norm 1. ``watch`` names features whose
    pre-activations are wanted too: they are copied out while they are at hand. ``part`` says of what batch these rows
    are a part; their loss, gradient and counts are their own, but batchtopk selects over the whole batch. With a
    ``shard``, the weights are that process's features, and so are the gradients, ``fired`` and ``selection``; prefixes,
    errors and counts are of the whole dictionary.
    """
    space = workspace or Workspace.like(weights, rows=source.shape[0])
    at = space.compute_weights(weights)
    source, part = source.to(at.W_enc.dtype), part or Part(len(source), len(source))
    candidates, watched = encode(at, source, loss=loss, pre=space.pre, watch=watch, part=part)
    selection = shard.keep(candidates, count=loss.kept(part.whole), per_row=loss.per_row)
    if not loss.per_row:
        selection = part.ranks.keep(selection, loss.kept(part.whole))
    bags = bags_of(selection, shard.prefixes(loss.prefixes))
    slope = shard.sum_(bag_sums(selection, bags, at.W_dec)).unflatten(0, (len(source), -1))
    shares = loss.weight_of(len(source))
    sse, residual = slopes_(slope, _unexplained(weights, source, target=target), weights=shares)
    code = _Code(selection, bags, transpose(selection, at.b_enc.numel()))
    fired = _differentiate(at, source, code=code, slope=slope, gradients=space.gradients, project=project)
    return StepResult(
        loss=(sse * constant(shares, sse.dtype, sse.device)).sum(),
        sse=sse,
        l0=shard.sum_(_l0(selection, bags, prefixes=len(loss.prefixes))),
        fired=fired,
        residual=residual,
        selection=selection,
        gradients=space.gradients,
        watched=watched.to(weights.b_enc.dtype),
    )


def encode(
    weights: Weights,
    source: Float[Tensor, "rows d_source"],
    *,
    loss: NestedLoss,
    pre: Float[Tensor, "block_rows dict_size"],
    part: Part,
    watch: Int[Tensor, " watched"] | None = None,
) -> tuple[Selection, Float[Tensor, "rows watched"]]:
    """The sparse code of a batch, and the pre-activations of the watched features.

    Under batchtopk, of a part of a batch, all candidates: what would be kept were it the whole. ``pre`` is overwritten,
    a block of rows at a time where the rule allows it.
    """
    watch = source.new_empty(0, dtype=torch.int64) if watch is None else watch
    if not loss.per_row:
        out = pre[: len(source)] if len(pre) >= len(source) else None
        whole = torch.addmm(weights.b_enc, source, weights.W_enc, out=out)
        count = min(loss.kept(part.whole), part.rows * whole.shape[1])
        return select_batchtopk(whole, count=count), whole.index_select(1, watch)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for rows in source.split(len(pre)):
        block = torch.addmm(weights.b_enc, rows, weights.W_enc, out=pre[: len(rows)])
        parts.append((*largest(block, loss.top_k), block.index_select(1, watch)))
    values, features, watched = (torch.cat(part) for part in zip(*parts, strict=True))
    return ascending(values, features), watched


def _unexplained(
    weights: Weights, source: Float[Tensor, "rows d_source"], *, target: Float[Tensor, "rows d_target"]
) -> Float[Tensor, "rows d_target"]:
    """What is left for the features: the target less the bias and the skip."""
    left = target - weights.b_dec
    return left if weights.W_skip is None else left.addmm_(source.to(left.dtype), weights.W_skip, alpha=-1)


@dataclass(frozen=True)
class _Code:
    """A selection with both ways of walking it: by (row, group) and by feature."""

    selection: Selection
    bags: Bags
    index: Transposed


def _differentiate(
    weights: Weights,
    source: Float[Tensor, "rows d_source"],
    *,
    code: _Code,
    slope: Float[Tensor, "rows prefixes d_target"],
    gradients: Weights,
    project: bool,
) -> Bool[Tensor, " dict_size"]:
    """Fill the gradient of every array; returns which features fired."""
    slopes = slope.flatten(0, 1).to(weights.W_dec.dtype)
    values, order, offsets = code.selection.values, code.index.order.long(), code.index.offsets
    d_values = activation_gradients(code.selection, code.bags, weights.W_dec, slope=slopes)
    d_pre = (d_values * (values > 0))[order]
    values = values[order]
    rows, bags = code.selection.rows()[order], code.bags.bag[order]
    weighted_sums_into(gradients.W_enc.T, source, rows, weight=d_pre, offsets=offsets)
    weighted_sums_into(gradients.W_dec, slopes, bags, weight=values, offsets=offsets)
    if project:
        # What points along a unit row is its dot product with the gradient: sum of a * dL/da, already at hand.
        along = torch.segment_reduce((values * d_pre).to(slope.dtype), "sum", offsets=offsets.long())
        gradients.W_dec.addcmul_(weights.W_dec, along[:, None], value=-1)
    gradients.b_enc.copy_(torch.segment_reduce(d_pre.to(slope.dtype), "sum", offsets=offsets.long()))
    torch.sum(slope[:, 0], dim=0, out=gradients.b_dec)
    if gradients.W_skip is not None:
        torch.mm(source.to(slope.dtype).T, slope[:, 0], out=gradients.W_skip)
    return torch.segment_reduce(values.float(), "max", offsets=offsets.long(), initial=0.0) > 0


def _l0(selection: Selection, bags: Bags, *, prefixes: int) -> Float[Tensor, " prefixes"]:
    """Mean number of firing features a row within each prefix."""
    firing = torch.zeros(selection.values.numel() + 1, dtype=torch.int64, device=selection.values.device)
    torch.cumsum(selection.values > 0, dim=0, out=firing[1:])
    counts = firing[bags.offsets.long()].diff().view(-1, prefixes)
    return counts.sum(dim=0).cumsum(dim=0).double() / selection.row_count
