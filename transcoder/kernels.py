"""The three operations of decode.py as Triton kernels, for CUDA. Their PyTorch twins there are the reference.

    sums      out[s] = sum over s's entries of  weight * table[index]     decode, and both weight gradients
    grad_sums (row, group) sums to squared errors, residual and gradients   one pass over memory for five
    dots      grad_sums[bag] . W_dec[feature] for every active entry           gradient of the activations

A program owns what it writes and adds in one order: no atomics, the same bits every time. Sums are kept in float32
(float64 for float64 tables) whatever the tables' dtype. ``TRITON_INTERPRET=1`` runs all of it without a GPU.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

_WIDTH_BLOCK = 256
_ENTRIES = 8
_jit: Any = triton.jit


@_jit
def _sums_kernel(
    out: tl.tensor,
    table: tl.tensor,
    index: tl.tensor,
    weight: tl.tensor,
    offsets: tl.tensor,
    width: tl.tensor,
    ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    first = tl.load(offsets + row)
    last = tl.load(offsets + row + 1)
    total = tl.zeros([BLOCK], dtype=ACC)
    for start in range(first, last, ENTRIES):
        entries = start + tl.arange(0, ENTRIES)
        there = entries < last
        rows = tl.load(index + entries, mask=there, other=0).to(tl.int64)
        scale = tl.load(weight + entries, mask=there, other=0.0).to(ACC)
        places = table + rows[:, None] * width + columns[None, :]
        block = tl.load(places, mask=there[:, None] & inside[None, :], other=0.0).to(ACC)
        total += tl.sum(scale[:, None] * block, axis=0)
    tl.store(out + row * width + columns, total, mask=inside)


@_jit
def _grad_sums_kernel(
    sums: tl.tensor,
    left: tl.tensor,
    weight: tl.tensor,
    squares: tl.tensor,
    residual: tl.tensor,
    width: tl.tensor,
    blocks: tl.tensor,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    own = sums + row * GROUPS * width + columns
    error = -tl.load(left + row * width + columns, mask=inside, other=0.0)
    for group in tl.static_range(GROUPS):  # pyright: ignore[reportGeneralTypeIssues]
        error += tl.load(own + group * width, mask=inside, other=0.0)
        tl.store(own + group * width, error, mask=inside)
        tl.store(squares + (row * GROUPS + group) * blocks + block, tl.sum(error * error, axis=0))
    tl.store(residual + row * width + columns, error, mask=inside)
    tl.debug_barrier()
    total = tl.zeros_like(error)
    for back in tl.static_range(GROUPS):  # pyright: ignore[reportGeneralTypeIssues]
        group = GROUPS - 1 - back
        total += tl.load(weight + group) * tl.load(own + group * width, mask=inside, other=0.0)
        tl.store(own + group * width, total, mask=inside)


@_jit
def _dots_kernel(
    out: tl.tensor,
    grad_sums: tl.tensor,
    table: tl.tensor,
    bag: tl.tensor,
    feature: tl.tensor,
    active: tl.tensor,
    WIDTH: tl.constexpr,
    ENTRIES: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
) -> None:
    entries = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    there = entries < active
    bags = tl.load(bag + entries, mask=there, other=0).to(tl.int64)
    rows = tl.load(feature + entries, mask=there, other=0).to(tl.int64)
    total = tl.zeros([ENTRIES], dtype=ACC)
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = there[:, None] & (columns < WIDTH)[None, :]
        left = tl.load(grad_sums + bags[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0).to(ACC)
        right = tl.load(table + rows[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0).to(ACC)
        total += tl.sum(left * right, axis=1)
    tl.store(out + entries, total, mask=there)


def weighted_sums_(
    out: Float[Tensor, "sums width"],
    table: Float[Tensor, "entries width"],
    index: Int[Tensor, " active"],
    *,
    weight: Float[Tensor, " active"],
    offsets: Int[Tensor, " sums_plus_one"],
) -> None:
    """Fill ``out[s]`` with the sum of ``weight[i] * table[index[i]]``, ``offsets[s] <= i < offsets[s + 1]``."""
    assert out.is_contiguous()
    assert table.is_contiguous()
    grid, sizes = (out.shape[0], triton.cdiv(out.shape[1], _WIDTH_BLOCK)), {"ENTRIES": _ENTRIES, "BLOCK": _WIDTH_BLOCK}
    with torch.cuda.device_of(out):  # Triton launches on the current card, wherever the arrays lie
        _sums_kernel[grid](out, table, index, weight, offsets, out.shape[1], **sizes, ACC=_sum_type(table))


def grad_sums_(
    sums: Float[Tensor, "rows groups width"],
    left: Float[Tensor, "rows width"],
    *,
    weights: Float[Tensor, " groups"],
) -> tuple[Float[Tensor, "rows groups"], Float[Tensor, "rows width"]]:
    """Turn group sums into sums of gradients; returns the squared error of every (row, prefix), and the residual."""
    assert sums.is_contiguous()
    rows, groups, width = sums.shape
    blocks = -(-width // _WIDTH_BLOCK)
    squares = sums.new_empty(rows, groups, blocks)
    residual = torch.empty_like(left, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(sums):
        _grad_sums_kernel[(rows, blocks)](
            sums, left.contiguous(), weights, squares, residual, width, blocks, GROUPS=groups, BLOCK=_WIDTH_BLOCK
        )
    return squares.sum(dim=2), residual


def dots(
    grad_sums: Float[Tensor, "bags width"],
    table: Float[Tensor, "features width"],
    *,
    bag: Int[Tensor, " active"],
    feature: Int[Tensor, " active"],
) -> Float[Tensor, " active"]:
    """``grad_sums[bag[i]] . table[feature[i]]`` for every i."""
    assert grad_sums.is_contiguous()
    assert table.is_contiguous()
    out, grid = grad_sums.new_empty(bag.numel()), (triton.cdiv(bag.numel(), _ENTRIES),)
    sizes = {"WIDTH": grad_sums.shape[1], "ENTRIES": _ENTRIES, "BLOCK": _WIDTH_BLOCK}
    with torch.cuda.device_of(out):
        _dots_kernel[grid](out, grad_sums, table, bag, feature, bag.numel(), **sizes, ACC=_sum_type(table))
    return out


def _sum_type(table: Tensor) -> Any:
    return tl.float64 if table.dtype == torch.float64 else tl.float32
