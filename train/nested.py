"""One step of the nested loss: reconstruct every prefix, and differentiate by hand.

    loss = sum over prefixes p of w_p * SSE_p / (rows * target_variance)   with  sum of w_p = 1

where SSE_p sums over rows and dimensions, and ``target_variance`` is the cache's total variance a row: the loss is the
weighted mean of the batch's fractions of variance unexplained, so learning rates carry over between layers and models.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from train.decode import (
    Bags,
    activation_gradients,
    bag_sums,
    bags_of,
    reverse_running_sum_,
    running_sum_,
    transpose,
    weighted_sums,
)
from train.topk import Activation, Selection, select
from train.weights import Weights


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


@dataclass(frozen=True)
class StepResult:
    """``l0`` counts firing features a row, ``residual`` is the whole dictionary's reconstruction minus the target."""

    loss: Float[Tensor, ""]
    sse: Float[Tensor, " prefixes"]
    l0: Float[Tensor, " prefixes"]
    fired: Bool[Tensor, " dict_size"]
    residual: Float[Tensor, "rows d_target"]
    selection: Selection
    gradients: Weights


def equal_weights(prefixes: tuple[int, ...]) -> tuple[float, ...]:
    """The paper's choice: every prefix counts the same."""
    return (1.0 / len(prefixes),) * len(prefixes)


def nested_step(
    weights: Weights,
    source: Float[Tensor, "rows d_source"],
    *,
    target: Float[Tensor, "rows d_target"],
    loss: NestedLoss,
) -> StepResult:
    """The loss of a batch and its gradient, all prefixes from one sparse decode; nothing waits for the device."""
    rows = source.shape[0]
    selection = select(torch.addmm(weights.b_enc, source, weights.W_enc), top_k=loss.top_k, activation=loss.activation)
    bags = bags_of(selection, loss.prefixes)
    errors = bag_sums(selection, bags, weights.W_dec).unflatten(0, (rows, -1))
    errors[:, 0] -= _unexplained(weights, source, target=target)
    sse = _sums_of_squares(running_sum_(errors))
    residual = errors[:, -1].clone()
    scale = torch.tensor(loss.weight_of(rows), dtype=torch.float64, device=sse.device)
    slope = reverse_running_sum_(errors, tuple(2 * weight for weight in loss.weight_of(rows)))
    gradients, fired = _gradients(weights, source, selection=selection, bags=bags, slope=slope)
    return StepResult(
        loss=(sse * scale).sum(),
        sse=sse,
        l0=_l0(selection, bags, prefixes=len(loss.prefixes)),
        fired=fired,
        residual=residual,
        selection=selection,
        gradients=gradients,
    )


def _unexplained(
    weights: Weights, source: Float[Tensor, "rows d_source"], *, target: Float[Tensor, "rows d_target"]
) -> Float[Tensor, "rows d_target"]:
    """What is left for the features: the target less the bias and the skip."""
    left = target - weights.b_dec
    return left if weights.W_skip is None else left.addmm_(source, weights.W_skip, alpha=-1)


def _gradients(
    weights: Weights,
    source: Float[Tensor, "rows d_source"],
    *,
    selection: Selection,
    bags: Bags,
    slope: Float[Tensor, "rows prefixes d_target"],
) -> tuple[Weights, Bool[Tensor, " dict_size"]]:
    """The gradient of every array, and which features fired."""
    values, flat = selection.values, slope.flatten(0, 1)
    d_pre = activation_gradients(selection, bags, weights.W_dec, slope=flat) * (values > 0)
    index = transpose(selection, weights.b_enc.numel())
    order = index.order.long()
    d_decoder = weighted_sums(flat, bags.bag[order], values[order], offsets=index.offsets)
    d_encoder = weighted_sums(source, selection.rows()[order], d_pre[order], offsets=index.offsets)
    d_bias = torch.segment_reduce(d_pre[order], "sum", offsets=index.offsets.long())
    fired = torch.segment_reduce(values[order], "max", offsets=index.offsets.long(), initial=0.0) > 0
    d_skip = None if weights.W_skip is None else source.T @ slope[:, 0]
    return Weights(d_encoder.T, d_bias, d_decoder, slope[:, 0].sum(dim=0), d_skip), fired


def _sums_of_squares(errors: Float[Tensor, "rows prefixes width"]) -> Float[Tensor, " prefixes"]:
    """Row by row, then in float64: a float32 sum of millions of squares is off by a thousandth."""
    return torch.linalg.vector_norm(errors, dim=2).double().square_().sum(dim=0)


def _l0(selection: Selection, bags: Bags, *, prefixes: int) -> Float[Tensor, " prefixes"]:
    """Mean number of firing features a row within each prefix."""
    firing = torch.zeros(selection.values.numel() + 1, dtype=torch.int64, device=selection.values.device)
    torch.cumsum(selection.values > 0, dim=0, out=firing[1:])
    counts = firing[bags.offsets.long()].diff().view(-1, prefixes)
    return counts.sum(dim=0).cumsum(dim=0).double() / selection.row_count
