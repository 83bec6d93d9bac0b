"""One step of the nested loss: reconstruct every prefix, and differentiate by hand.

    loss = sum over prefixes p of w_p * SSE_p / (rows * target_variance)   with  sum of w_p = 1

where SSE_p sums over rows and dimensions, and ``target_variance`` is the cache's total variance a row: the loss is the
weighted mean of the batch's fractions of variance unexplained, so learning rates carry over between layers and models.
reference.py says the same in a few lines of autograd, and is what the tests hold this against.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from train.arrays.batch_share import BatchShare
from train.arrays.parameters import Parameters
from train.arrays.workspace import Workspace
from transcoder.constants import constant
from transcoder.decode import (
    Bags,
    Transposed,
    activation_gradients,
    bag_sums,
    bags_of,
    grad_sums_,
    transpose,
    weighted_sums_into,
)
from transcoder.rules.rule import Rule
from transcoder.sharded import WHOLE, Shard, keep_winners
from transcoder.sparse_code import SparseCode, entries_of, stacked


@dataclass(frozen=True)
class NestedLoss:
    """What a step minimises, and the rule it selects by. ``prefix_weights`` sum to 1."""

    prefixes: tuple[int, ...]
    rule: Rule
    target_variance: float
    prefix_weights: tuple[float, ...]

    def weight_of(self, rows: int) -> tuple[float, ...]:
        """What a squared error of each prefix adds to the loss of a batch of this many rows."""
        return tuple(weight / (rows * self.target_variance) for weight in self.prefix_weights)


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
    code: SparseCode
    gradients: Parameters
    watched: Float[Tensor, "rows watched"]


def equal_weights(prefixes: tuple[int, ...]) -> tuple[float, ...]:
    """The paper's choice: every prefix counts the same."""
    return (1.0 / len(prefixes),) * len(prefixes)


@torch.no_grad()
def nested_step(
    weights: Parameters,
    source: Float[Tensor, "rows d_source"],
    *,
    target: Float[Tensor, "rows d_target"],
    loss: NestedLoss,
    workspace: Workspace | None = None,
    project: bool = False,
    watch: Int[Tensor, " watched"] | None = None,
    share: BatchShare | None = None,
    shard: Shard = WHOLE,
) -> StepResult:
    """The loss of a batch and its gradient, all prefixes from one sparse decode; top-k waits for no device.

    With a ``workspace`` the gradients are its arrays, overwritten by the next step. ``project`` leaves out of the
    decoder's gradient what points along its rows, which must then have norm 1. ``watch`` names features whose
    pre-activations are wanted too: they are copied out while they are at hand. ``share`` says of what batch these rows
    are; their loss, gradient and counts are their own, but batchtopk selects over the whole batch. With a
    ``shard``, the weights are that process's features, and so are the gradients, ``fired`` and ``code``; prefixes,
    errors and counts are of the whole dictionary.
    """
    space = workspace or Workspace.like(weights, rows=source.shape[0], rule=loss.rule)
    rounded = space.compute_weights(weights)
    source = source.to(rounded.W_enc.dtype)
    share = share or BatchShare(len(source), len(source))

    candidates, watched = encode(rounded, source, loss=loss, pre=space.pre, watch=watch, share=share)
    code = keep_winners(candidates, loss.rule, batch_rows=share.batch_rows, ranks=shard)
    if loss.rule.scope == "batch":
        code = keep_winners(code, loss.rule, batch_rows=share.batch_rows, ranks=share.ranks)

    bags = bags_of(code, shard.prefixes(loss.prefixes))
    sums = shard.sum_(bag_sums(code, bags, rounded.W_dec)).unflatten(0, (len(source), -1))
    shares = loss.weight_of(len(source))
    sse, residual = grad_sums_(sums, _unexplained(weights, source, target=target), weights=shares)

    indexed = _IndexedCode(code, bags, transpose(code, rounded.b_enc.numel()))
    fired = _differentiate(rounded, source, indexed=indexed, grad_sums=sums, gradients=space.gradients, project=project)
    return StepResult(
        loss=(sse * constant(shares, sse.dtype, sse.device)).sum(),
        sse=sse,
        l0=shard.sum_(_l0(code, bags, prefixes=len(loss.prefixes))),
        fired=fired,
        residual=residual,
        code=code,
        gradients=space.gradients,
        watched=watched.to(weights.b_enc.dtype),
    )


def encode(
    weights: Parameters,
    source: Float[Tensor, "rows d_source"],
    *,
    loss: NestedLoss,
    pre: Float[Tensor, "block_rows dict_size"],
    share: BatchShare,
    watch: Int[Tensor, " watched"] | None = None,
) -> tuple[SparseCode, Float[Tensor, "rows watched"]]:
    """The sparse code of a batch, and the pre-activations of the watched features.

    Under a rule that selects over the whole batch: the candidates, which are what would be kept of these rows alone.
    ``pre`` is overwritten, a block of rows at a time where the rule allows it.
    """
    watch = source.new_empty(0, dtype=torch.int64) if watch is None else watch
    over_batch = loss.rule.scope == "batch"
    codes: list[SparseCode] = []
    watched: list[Tensor] = []
    for rows in source.split(len(source) if over_batch else len(pre)):
        out = pre[: len(rows)] if len(rows) <= len(pre) else None
        block = torch.addmm(weights.b_enc, rows, weights.W_enc.T, out=out)
        codes.append(loss.rule.select_training(block, batch_rows=share.batch_rows))
        watched.append(block.index_select(1, watch))
    code = stacked(codes)
    if over_batch and not share.rows:
        # The row of zeros that stands in for no rows must not win a place from another process's rows.
        code = entries_of(code, torch.zeros_like(code.values, dtype=torch.bool))
    return code, torch.cat(watched)


def _unexplained(
    weights: Parameters, source: Float[Tensor, "rows d_source"], *, target: Float[Tensor, "rows d_target"]
) -> Float[Tensor, "rows d_target"]:
    """What is left for the features: the target less the bias and the skip."""
    left = target - weights.b_dec
    return left if weights.W_skip is None else left.addmm_(source.to(left.dtype), weights.W_skip, alpha=-1)


@dataclass(frozen=True)
class _IndexedCode:
    """A sparse code with both ways of walking it: by (row, group) and by feature."""

    code: SparseCode
    bags: Bags
    by_feature: Transposed


def _differentiate(
    weights: Parameters,
    source: Float[Tensor, "rows d_source"],
    *,
    indexed: _IndexedCode,
    grad_sums: Float[Tensor, "rows prefixes d_target"],
    gradients: Parameters,
    project: bool,
) -> Bool[Tensor, " dict_size"]:
    """Fill the gradient of every array; returns which features fired."""
    code = indexed.code
    order = indexed.by_feature.order.long()
    offsets = indexed.by_feature.offsets
    by_bag = grad_sums.flatten(0, 1).to(weights.W_dec.dtype)

    # dL/da by (row, group), then everything in the order of the features.
    d_values = activation_gradients(code, indexed.bags, weights.W_dec, grad_sums=by_bag)
    d_pre = (d_values * (code.values > 0))[order]
    values = code.values[order]
    rows = code.rows()[order]
    bags = indexed.bags.bag[order]

    weighted_sums_into(gradients.W_enc, source, rows, weight=d_pre, offsets=offsets)
    less = None
    if project:
        # What points along a unit row is its dot product with the gradient: sum of a * dL/da, already at hand.
        along = torch.segment_reduce((values * d_pre).to(grad_sums.dtype), "sum", offsets=offsets.long())
        less = along, weights.W_dec
    weighted_sums_into(gradients.W_dec, by_bag, bags, weight=values, offsets=offsets, less=less)

    gradients.b_enc.copy_(torch.segment_reduce(d_pre.to(grad_sums.dtype), "sum", offsets=offsets.long()))
    # The first group's sums run over all prefixes: what all prefixes share, the bias and the skip, gets those.
    torch.sum(grad_sums[:, 0], dim=0, out=gradients.b_dec)
    if gradients.W_skip is not None:
        torch.mm(source.to(grad_sums.dtype).T, grad_sums[:, 0], out=gradients.W_skip)
    return torch.segment_reduce(values.float(), "max", offsets=offsets.long(), initial=0.0) > 0


def _l0(code: SparseCode, bags: Bags, *, prefixes: int) -> Float[Tensor, " prefixes"]:
    """Mean number of firing features a row within each prefix."""
    firing = torch.zeros(code.values.numel() + 1, dtype=torch.int64, device=code.values.device)
    torch.cumsum(code.values > 0, dim=0, out=firing[1:])
    counts = firing[bags.offsets.long()].diff().view(-1, prefixes)
    return counts.sum(dim=0).cumsum(dim=0).double() / code.row_count
