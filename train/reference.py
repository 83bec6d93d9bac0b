"""The nested loss as in the paper: a dense decode for every prefix, differentiated by autograd.

Slow: it is the reference. Values and gradients of the sparse step agree with it in float64.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from train.arrays.parameters import Parameters
from train.objective import NestedLoss


def reference_prefixes(
    weights: Parameters,
    source: Float[Tensor, "rows d_source"],
    *,
    code: Float[Tensor, "rows dict_size"],
    prefixes: tuple[int, ...],
) -> Float[Tensor, "rows prefixes d_target"]:
    """Every prefix's reconstruction from the dense code, one matrix product each."""
    base = weights.b_dec if weights.W_skip is None else weights.b_dec + source @ weights.W_skip
    return torch.stack([base + code[:, :prefix] @ weights.W_dec[:prefix] for prefix in prefixes], dim=1)


def reference_step(
    weights: Parameters,
    source: Float[Tensor, "rows d_source"],
    *,
    target: Float[Tensor, "rows d_target"],
    loss: NestedLoss,
) -> tuple[Float[Tensor, ""], Float[Tensor, " prefixes"], Parameters]:
    """The loss, the squared error of every prefix, and the gradient."""
    leaves = {name: array.detach().requires_grad_() for name, array in weights.tensors().items()}
    traced = Parameters(**leaves)
    pre = source @ traced.W_enc.T + traced.b_enc
    active = loss.rule.select_training(pre.detach(), batch_rows=len(pre)).dense(pre.shape[1]) > 0
    reconstructed = reference_prefixes(traced, source, code=pre.relu() * active, prefixes=loss.prefixes)
    scale = 1.0 if loss.dimension_scale is None else loss.dimension_scale
    sse = ((reconstructed - target[:, None]) * scale).square().sum(dim=(0, 2))
    value = sum(weight * error for weight, error in zip(loss.weight_of(len(source)), sse, strict=True))
    assert isinstance(value, Tensor)
    gradients = torch.autograd.grad(value, list(leaves.values()))
    return value.detach(), sse.detach(), Parameters(**dict(zip(leaves, gradients, strict=True)))
