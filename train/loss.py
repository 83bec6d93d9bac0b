"""One step of the nested loss: reconstruct every prefix, and differentiate by hand.

objective.py defines the loss. reference.py computes the same in a few lines with autograd; the tests compare the two.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from train.arrays.batch_share import BatchShare
from train.arrays.parameters import Parameters
from train.arrays.workspace import Workspace
from train.objective import NestedLoss
from transcoder.constants import constant
from transcoder.decode import (
    Bags,
    Transposed,
    activation_gradients,
    bag_sums,
    bags_of,
    transpose,
    weighted_sums_into,
)
from transcoder.rules.rule import Rule
from transcoder.sharded import UNSHARDED, Shard, keep_winners
from transcoder.sparse_code import SparseCode, entries_of, stacked


@dataclass(frozen=True)
class StepResult:
    """``l0`` counts firing features a row, ``residual`` is the whole dictionary's reconstruction minus the target.

    ``penalty`` is the penalty on the whole batch's L0, None for a rule without one. ``watched`` has the pre-activations
    of the features that ``watch`` named.
    """

    loss: Float[Tensor, ""]
    sse: Float[Tensor, " prefixes"]
    l0: Float[Tensor, " prefixes"]
    fired: Bool[Tensor, " dict_size"]
    residual: Float[Tensor, "rows d_target"]
    code: SparseCode
    gradients: Parameters
    watched: Float[Tensor, "rows watched"]
    penalty: Float[Tensor, ""] | None = None


@dataclass(frozen=True)
class Decoded:
    """A batch's sparse decode: ``sums`` are over the features of each (row, prefix group), without bias and skip, which
    all prefixes share. ``weights`` and ``source`` are in the dtype of the products."""

    weights: Parameters
    source: Float[Tensor, "rows d_source"]
    rule: Rule
    code: SparseCode
    bags: Bags
    sums: Float[Tensor, "rows groups d_target"]


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
    shard: Shard = UNSHARDED,
) -> StepResult:
    """The loss of a batch and its gradient, for all prefixes from one sparse decode; with top-k the host does not wait.

    With a ``workspace`` the gradients are its arrays, overwritten by the next step. ``project`` leaves out of the
    decoder's gradient what points along its rows, which must then have norm 1. ``watch`` names features whose
    pre-activations are wanted too: they are copied while they exist. ``share`` tells to which batch these rows belong;
    loss, gradient and counts are of these rows only, but batchtopk selects over the whole batch. With a ``shard``,
    weights, gradients, ``fired`` and ``code`` are of this process's features; prefixes, errors and counts are of the
    whole dictionary.
    """
    space = workspace or Workspace.like(weights, rows=source.shape[0], rule=loss.rule)
    share = share or BatchShare(len(source), len(source))
    rule = loss.rule_of(weights)
    rounded = space.compute_weights(weights)
    source = source.to(rounded.W_enc.dtype)
    code, watched = encode(rounded, source, rule=rule, pre=space.pre, watch=watch, share=share, shard=shard)
    decoded = decode(rounded, source, code=code, rule=rule, prefixes=loss.prefixes, shard=shard)
    sse, residual = loss.grad_sums_(decoded.sums, unexplained(weights, source, target=target))
    return differentiate(
        decoded,
        sse=sse,
        residual=residual,
        loss=loss,
        gradients=space.gradients,
        project=project,
        watched=watched.to(weights.b_enc.dtype),
        share=share,
        shard=shard,
    )


def decode(
    weights: Parameters,
    source: Float[Tensor, "rows d_source"],
    *,
    code: SparseCode,
    rule: Rule,
    prefixes: tuple[int, ...],
    shard: Shard = UNSHARDED,
) -> Decoded:
    """The decode of a code that ``encode`` found."""
    bags = bags_of(code, shard.prefixes(prefixes))
    sums = shard.sum_(bag_sums(code, bags, weights.W_dec)).unflatten(0, (len(source), -1))
    return Decoded(weights, source, rule, code, bags, sums)


def differentiate(
    decoded: Decoded,
    *,
    sse: Float[Tensor, " prefixes"],
    residual: Float[Tensor, "rows d_target"],
    loss: NestedLoss,
    gradients: Parameters,
    project: bool,
    watched: Float[Tensor, "rows watched"],
    share: BatchShare,
    shard: Shard = UNSHARDED,
) -> StepResult:
    """The step's result and gradient, once ``decoded.sums`` have become sums of gradients (``grad_sums_``)."""
    code = decoded.code
    l0 = shard.sum_(_l0(code, decoded.bags, prefixes=len(loss.prefixes)))
    penalty = None
    l0_gradient = 0.0
    if gradients.threshold is not None:
        penalty, derivative = decoded.rule.penalty(share.ranks.sum_(l0[-1] * share.fraction))
        penalty = loss.sparsity * penalty
        l0_gradient = loss.sparsity * float(derivative)
    indexed = _IndexedCode(code, decoded.bags, transpose(code, decoded.weights.b_enc.numel()))
    fired = _fill_gradients(decoded, indexed, gradients=gradients, project=project, l0_gradient=l0_gradient)
    shares = loss.weight_of(code.row_count)
    return StepResult(
        loss=(sse * constant(shares, sse.dtype, sse.device)).sum(),
        sse=sse,
        l0=l0,
        fired=fired,
        residual=residual,
        code=code,
        gradients=gradients,
        watched=watched,
        penalty=penalty,
    )


def encode(
    weights: Parameters,
    source: Float[Tensor, "rows d_source"],
    *,
    rule: Rule,
    pre: Float[Tensor, "block_rows dict_size"],
    share: BatchShare,
    watch: Int[Tensor, " watched"] | None = None,
    shard: Shard = UNSHARDED,
) -> tuple[SparseCode, Float[Tensor, "rows watched"]]:
    """The sparse code of a batch, and the pre-activations of the watched features.

    Where several processes compete, over features or under a rule that selects over the whole batch, each picks what it
    would keep alone and then drops what does not win. ``pre`` is overwritten, a block of rows at a time where the rule
    allows it.
    """
    watch = source.new_empty(0, dtype=torch.int64) if watch is None else watch
    over_batch = rule.scope == "batch"
    codes: list[SparseCode] = []
    watched: list[Tensor] = []
    for rows in source.split(len(source) if over_batch else len(pre)):
        out = pre[: len(rows)] if len(rows) <= len(pre) else None
        block = torch.addmm(weights.b_enc, rows, weights.W_enc.T, out=out)
        codes.append(rule.select_training(block, batch_rows=share.batch_rows))
        watched.append(block.index_select(1, watch))
    code = stacked(codes)
    if over_batch and not share.rows:
        # The row of zeros that stands in for no rows must not win a place from another process's rows.
        code = entries_of(code, torch.zeros_like(code.values, dtype=torch.bool))
    code = keep_winners(code, rule, batch_rows=share.batch_rows, ranks=shard)
    if over_batch:
        code = keep_winners(code, rule, batch_rows=share.batch_rows, ranks=share.ranks)
    return code, torch.cat(watched)


def unexplained(
    weights: Parameters, source: Float[Tensor, "rows d_source"], *, target: Float[Tensor, "rows d_target"]
) -> Float[Tensor, "rows d_target"]:
    """What is left for the features: the target less the bias and the skip. Of a decoder that writes to several layers'
    targets side by side, ``target`` may be the first, which alone gets both."""
    left = target - weights.b_dec[: target.shape[1]]
    return left if weights.W_skip is None else left.addmm_(source.to(left.dtype), weights.W_skip, alpha=-1)


@dataclass(frozen=True)
class _IndexedCode:
    """A sparse code with two indices: by (row, group) and by feature."""

    code: SparseCode
    bags: Bags
    by_feature: Transposed


def _fill_gradients(
    decoded: Decoded, indexed: _IndexedCode, *, gradients: Parameters, project: bool, l0_gradient: float
) -> Bool[Tensor, " dict_size"]:
    """Fill the gradient of every array; returns which features fired. ``l0_gradient`` is the penalty's, by mean L0."""
    weights = decoded.weights
    source = decoded.source
    grad_sums = decoded.sums
    code = indexed.code
    order = indexed.by_feature.order.long()
    offsets = indexed.by_feature.offsets
    by_bag = grad_sums.flatten(0, 1).to(weights.W_dec.dtype)

    # dL/da by (row, group), then everything in the order of the features.
    d_values = activation_gradients(code, indexed.bags, weights.W_dec, grad_sums=by_bag)
    d_values = d_values[order]
    values = code.values[order]
    d_pre = d_values * (values > 0)
    rows = code.rows()[order]
    bags = indexed.bags.bag[order]

    weighted_sums_into(gradients.W_enc, source, rows, weight=d_pre, offsets=offsets)
    less = None
    if project:
        # The component along a unit row is its dot product with the gradient: the sum of a * dL/da, which is known
        # here.
        along = torch.segment_reduce((values * d_pre).to(grad_sums.dtype), "sum", offsets=offsets.long())
        less = along, weights.W_dec
    weighted_sums_into(gradients.W_dec, by_bag, bags, weight=values, offsets=offsets, less=less)

    if gradients.threshold is not None:
        per_row = l0_gradient / code.row_count
        gradients.threshold.copy_(
            decoded.rule.threshold_gradient(values, d_values, offsets=offsets, l0_gradient=per_row)
        )
    gradients.b_enc.copy_(torch.segment_reduce(d_pre.to(grad_sums.dtype), "sum", offsets=offsets.long()))
    # The first group's sums run over all prefixes: what all prefixes share, the bias and the skip, gets those.
    torch.sum(grad_sums[:, 0], dim=0, out=gradients.b_dec)
    if gradients.W_skip is not None:
        written = grad_sums[:, 0, : gradients.W_skip.shape[1]]
        torch.mm(source.to(grad_sums.dtype).T, written, out=gradients.W_skip)
    return torch.segment_reduce(values.float(), "max", offsets=offsets.long(), initial=0.0) > 0


def _l0(code: SparseCode, bags: Bags, *, prefixes: int) -> Float[Tensor, " prefixes"]:
    """Mean number of firing features a row within each prefix."""
    firing = torch.zeros(code.values.numel() + 1, dtype=torch.int64, device=code.values.device)
    torch.cumsum(code.values > 0, dim=0, out=firing[1:])
    counts = firing[bags.offsets.long()].diff().view(-1, prefixes)
    return counts.sum(dim=0).cumsum(dim=0).double() / code.row_count
