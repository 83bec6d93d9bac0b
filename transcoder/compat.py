"""All non-public functions of PyTorch that transcoders and their training use.

Written for the version in constraints.txt. If a release renames one of them, only this file must change.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.adam import adam


def bag_products(
    grad_sums: Float[Tensor, "bags width"],
    table: Float[Tensor, "features width"],
    *,
    features: Int[Tensor, " entries"],
    offsets: Int[Tensor, " bags"],
    bag: Int[Tensor, " entries"],
) -> Float[Tensor, " entries"]:
    """``grad_sums[bag] . table[feature]`` of every entry: the gradient of ``embedding_bag``'s per-sample weights.

    Autograd would compute the sums of ``embedding_bag`` first, which are not needed here.
    """
    mode_sum = 0
    no_padding = -1
    return torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad_sums, table, features, offsets, bag, mode_sum, no_padding
    )


def fused_adam_(
    arrays: Sequence[Tensor],
    gradients: Sequence[Tensor],
    *,
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    step: int,
    divisor: Tensor | None,
    is_bad: Float[Tensor, ""],
    decoupled: bool,
    beta1: float,
    beta2: float,
    lr: float,
    weight_decay: float,
    epsilon: float,
) -> None:
    """One step of Adam in place, number ``step`` counted from 0, on gradients divided by ``divisor``.

    Nothing changes if ``is_bad`` is 1. The public optimisers need ``GradScaler`` for both, which waits for the device
    at every step.
    """
    adam(
        list(arrays),
        list(gradients),
        list(first),
        list(second),
        [],
        [torch.full((), float(step), device=is_bad.device) for _ in arrays],
        fused=True,
        grad_scale=divisor,
        found_inf=is_bad,
        decoupled_weight_decay=decoupled,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=weight_decay,
        eps=epsilon,
        maximize=False,
    )
