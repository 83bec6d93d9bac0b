"""One pass over memory for Adam, rows of norm 1 and the rounded copy of an array: a Triton kernel, for CUDA.

It computes what ``optim.update_`` does with PyTorch's fused Adam and the passes after it, up to rounding in float32.
A decoder row stays in the registers of one program, so its norm is known when the row is written. Other arrays are
updated in blocks.
"""

from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

_FLAT_BLOCK = 1024
"""Numbers that a program updates of an array without unit rows: 16 for each thread of its two warps (``num_warps``)."""
_TRITON_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_jit: Any = triton.jit
# With @no_type_check, because a checker of types would put a wrapper in place of the function that Triton compiles.


@dataclass(frozen=True)
class Adam:
    """The settings of Adam, the same in every step."""

    beta1: float
    beta2: float
    epsilon: float
    is_decoupled: bool


@_jit
@no_type_check
def _update_kernel(
    weights: tl.tensor,
    gradient: tl.tensor,
    first: tl.tensor,
    second: tl.tensor,
    rounded: tl.tensor,
    norm: tl.tensor,
    divisor: tl.tensor,
    count: tl.tensor,
    width: tl.tensor,
    rest1: tl.tensor,
    rest2: tl.tensor,
    epsilon: tl.tensor,
    decay: tl.tensor,
    numbers: tl.tensor,
    DECOUPLED: tl.constexpr,
    UNIT: tl.constexpr,
    ROUNDED: tl.constexpr,
    ROUNDED_DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    columns = tl.arange(0, BLOCK)
    offsets = tl.program_id(0).to(tl.int64) * width + columns
    inside = (columns < width) & (offsets < count)
    whole_norm = tl.load(norm)
    finite = whole_norm - whole_norm == 0.0  # neither NaN nor infinite; otherwise moments and weights stay
    lr = tl.load(numbers)
    step_size = tl.load(numbers + 1)
    root = tl.load(numbers + 2)

    value = tl.load(weights + offsets, mask=inside, other=0.0)
    grad = tl.load(gradient + offsets, mask=inside, other=0.0) / tl.load(divisor)
    old_mean = tl.load(first + offsets, mask=inside, other=0.0)
    old_square = tl.load(second + offsets, mask=inside, other=0.0)
    decayed = value
    if DECOUPLED:
        decayed = value - lr * decay * value
    else:
        grad += decay * value
    mean = old_mean + rest1 * (grad - old_mean)
    square = old_square + rest2 * (grad * grad - old_square)
    stepped = decayed - step_size * mean / (tl.sqrt(square) / root + epsilon)
    value = tl.where(finite, stepped, value)

    tl.store(first + offsets, tl.where(finite, mean, old_mean), mask=inside)
    tl.store(second + offsets, tl.where(finite, square, old_square), mask=inside)
    if UNIT:
        value = value / tl.maximum(tl.sqrt(tl.sum(value * value, axis=0)), 1e-12)
    tl.store(weights + offsets, value, mask=inside)
    if ROUNDED:
        tl.store(rounded + offsets, value.to(ROUNDED_DTYPE), mask=inside)


def update_array_(
    weights: Float[Tensor, "..."],
    gradient: Float[Tensor, "..."],
    *,
    first: Float[Tensor, "..."],
    second: Float[Tensor, "..."],
    rounded: Float[Tensor, "..."] | None,
    norm: Float[Tensor, ""],
    divisor: Float[Tensor, ""],
    numbers: Float[Tensor, " numbers"],
    adam: Adam,
    weight_decay: float,
    unit_rows: bool,
) -> None:
    """Take a step in place: weights, both moments, and ``rounded``, the weights in another dtype, where it is given.

    The gradient is divided by ``divisor``. ``numbers`` are the step's ``optim.step_numbers``: in an array, so that a
    step in a CUDA graph reads its own. If ``norm``, that of the whole gradient, is not finite, nothing changes but the
    rounding of rows that ``unit_rows`` scales to norm 1.
    """
    arrays = [weights, gradient, first, second, *([] if rounded is None else [rounded])]
    assert all(array.is_contiguous() for array in arrays)
    width = weights.shape[1] if unit_rows else _FLAT_BLOCK
    block = triton.next_power_of_2(width)
    with torch.cuda.device_of(weights):  # Triton launches on the current card, wherever the arrays lie
        _update_kernel[(triton.cdiv(weights.numel(), width),)](
            weights,
            gradient,
            first,
            second,
            weights if rounded is None else rounded,
            norm,
            divisor,
            weights.numel(),
            width,
            1 - adam.beta1,
            1 - adam.beta2,
            adam.epsilon,
            weight_decay,
            numbers,
            DECOUPLED=adam.is_decoupled,
            UNIT=unit_rows,
            ROUNDED=rounded is not None,
            ROUNDED_DTYPE=_TRITON_DTYPES[(weights if rounded is None else rounded).dtype],
            BLOCK=block,
            num_warps=min(16, max(1, block // 512)),
        )
