"""The three operations of decode.py as Triton kernels, for CUDA. Their PyTorch twins there are the reference.

    sums      out[s] = sum over s's entries of  weight * table[index]     decode, and both weight gradients
    grad_sums (row, group) sums to squared errors, residual and gradients   one pass over memory for five
    dots      grad_sums[bag] . W_dec[feature] for every active entry           gradient of the activations

Only one program writes each result, and adds in a fixed order: no atomics, the same bits every time. Sums are float32
(float64 for float64 tables), for every dtype of the tables. ``TRITON_INTERPRET=1`` runs all of it without a GPU.

A program of ``sums`` adds one row of the table after another in its threads' own registers, and reduces nothing. A
program of ``dots`` adds into a tile of entries by columns, and reduces it once, after its loop: a reduction in every
turn took three quarters of a training step on an H100.

A feature that fires on every row has an entry for every row. Entries are therefore divided into windows of ``_WINDOW``:
if a longer bag goes on into a window, another program adds up the piece there, and a second kernel adds the pieces of a
bag in order.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from transcoder.tiles import dots_tile, sums_tile

_WIDTH_BLOCK = 256  # columns of a program of the running sums: eight groups of them are 8 kB of registers
_WINDOW = 256  # entries that one program adds up at most
_PIECE_WARPS = 4  # with two, the numbers of a block of 512 columns do not fit into the registers
_jit: Any = triton.jit
# With @no_type_check, because a checker of types would put a wrapper in place of the function that Triton compiles.


@_jit(do_not_specialize=["bags", "windows"])  # both change from batch to batch: no kernel is compiled anew for that
@no_type_check
def _sums_kernel(
    out: tl.tensor,
    pieces: tl.tensor,
    owners: tl.tensor,
    table: tl.tensor,
    index: tl.tensor,
    weight: tl.tensor,
    offsets: tl.tensor,
    width: tl.tensor,
    along: tl.tensor,
    unit: tl.tensor,
    bags: tl.tensor,
    windows: tl.tensor,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
    PROJECT: tl.constexpr,
) -> None:
    # Programs below ``windows`` add up the piece of a long bag that goes on into window ``program + 1``, the others
    # begin a bag. Pieces come first: they are the longest loops, and nothing should wait for them at the end.
    program = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    continues = program < windows
    start = (program + 1) * WINDOW
    bag = program - windows
    if continues:  # find the bag that begins before the window and ends in it or after it
        bag = program * 0
        end = bag + bags
        while end - bag > 1:
            middle = (bag + end) // 2
            before = tl.load(offsets + middle) < start
            bag = tl.where(before, middle, bag)
            end = tl.where(before, end, middle)
    bag_first = tl.load(offsets + bag).to(tl.int64)
    bag_last = tl.load(offsets + bag + 1).to(tl.int64)
    is_long = bag_last - bag_first > WINDOW
    boundary = (bag_first // WINDOW + 1) * WINDOW  # the first window that begins inside the bag, were it long
    first = tl.where(continues, start, bag_first)
    limit = tl.where(continues, tl.where(is_long, start + WINDOW, start), tl.where(is_long, boundary, bag_last))
    last = tl.minimum(bag_last, limit)

    sums = tl.zeros([BLOCK], dtype=ACC)
    for entry in range(first, last):
        row = tl.load(index + entry).to(tl.int64)
        scale = tl.load(weight + entry).to(ACC)
        sums += scale * tl.load(table + row * width + columns, mask=inside, other=0.0).to(ACC)

    if continues:
        tl.store(pieces + program * width + columns, sums, mask=inside & is_long)
        owner = tl.where(
            is_long & (start == boundary), bag, -1
        )  # the program of the bag's first piece adds them all later
        tl.store(owners + program, owner.to(tl.int32), mask=tl.program_id(1) == 0)
    else:
        if PROJECT:
            row = tl.load(unit + bag * width + columns, mask=inside, other=0.0).to(ACC)
            sums -= tl.load(along + bag).to(ACC) * row
        tl.store(out + bag * width + columns, sums, mask=inside)


@_jit
@no_type_check
def _add_pieces_kernel(
    out: tl.tensor,
    pieces: tl.tensor,
    owners: tl.tensor,
    offsets: tl.tensor,
    width: tl.tensor,
    WINDOW: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    program = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    bag = tl.load(owners + program).to(tl.int64)
    if bag >= 0:
        last = tl.load(offsets + bag + 1).to(tl.int64)
        total = tl.load(out + bag * width + columns, mask=inside, other=0.0)
        for piece in range(program, (last - 1) // WINDOW):
            total += tl.load(pieces + piece * width + columns, mask=inside, other=0.0)
        tl.store(out + bag * width + columns, total, mask=inside)


@_jit
@no_type_check
def _grad_sums_kernel(
    sums: tl.tensor,
    left: tl.tensor,
    weight: tl.tensor,
    scale: tl.tensor,
    squares: tl.tensor,
    residual: tl.tensor,
    width: tl.tensor,
    blocks: tl.tensor,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALED: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    own = sums + row * GROUPS * width + columns
    error = -tl.load(left + row * width + columns, mask=inside, other=0.0)
    counts = tl.full([BLOCK], 1.0, dtype=error.dtype)  # what a squared error of each dimension counts
    if SCALED:
        counts = tl.load(scale + columns, mask=inside, other=0.0)
        counts *= counts
    for group in tl.static_range(GROUPS):  # pyright: ignore[reportGeneralTypeIssues]
        error += tl.load(own + group * width, mask=inside, other=0.0)
        tl.store(own + group * width, error * counts, mask=inside)
        tl.store(squares + (row * GROUPS + group) * blocks + block, tl.sum(error * error * counts, axis=0))
    tl.store(residual + row * width + columns, error, mask=inside)
    tl.debug_barrier()
    total = tl.zeros_like(error)
    for back in tl.static_range(GROUPS):  # pyright: ignore[reportGeneralTypeIssues]
        group = GROUPS - 1 - back
        total += tl.load(weight + group) * tl.load(own + group * width, mask=inside, other=0.0)
        tl.store(own + group * width, total, mask=inside)


@_jit
@no_type_check
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
    total = tl.zeros([ENTRIES, BLOCK], dtype=ACC)
    for start in range(0, WIDTH, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = there[:, None] & (columns < WIDTH)[None, :]
        left = tl.load(grad_sums + bags[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0).to(ACC)
        right = tl.load(table + rows[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0).to(ACC)
        total += left * right
    tl.store(out + entries, tl.sum(total, axis=1), mask=there)


def weighted_sums_(
    out: Float[Tensor, "sums width"],
    table: Float[Tensor, "entries width"],
    index: Int[Tensor, " active"],
    *,
    weight: Float[Tensor, " active"],
    offsets: Int[Tensor, " sums_plus_one"],
    less: tuple[Float[Tensor, " sums"], Float[Tensor, "sums width"]] | None = None,
) -> None:
    """Fill ``out[s]`` with the sum of ``weight[i] * table[index[i]]``, ``offsets[s] <= i < offsets[s + 1]``.

    ``less`` gives a number and a row for every sum; their product is taken off it.
    """
    bags, width = out.shape
    tile = sums_tile(width)
    # Every window but the first may begin inside a long bag. How many do only the card knows: nothing waits.
    windows = max(0, index.numel() - 1) // _WINDOW
    pieces = out.new_empty(windows, width)
    owners = torch.empty(windows, dtype=torch.int32, device=out.device)
    along, unit = less or (weight, table)  # neither is read where nothing is taken off
    assert all(array.is_contiguous() for array in (out, table, unit))
    with torch.cuda.device_of(out):  # Triton launches on the current card, wherever the arrays lie
        _sums_kernel[(windows + bags, triton.cdiv(width, tile.block))](
            out,
            pieces,
            owners,
            table,
            index,
            weight,
            offsets,
            width,
            along,
            unit,
            bags,
            windows,
            WINDOW=_WINDOW,
            BLOCK=tile.block,
            ACC=_sum_type(table),
            PROJECT=less is not None,
            num_warps=tile.warps,
        )
        if windows:
            _add_pieces_kernel[(windows, triton.cdiv(width, tile.block))](
                out, pieces, owners, offsets, width, WINDOW=_WINDOW, BLOCK=tile.block, num_warps=_PIECE_WARPS
            )


def grad_sums_(
    sums: Float[Tensor, "rows groups width"],
    left: Float[Tensor, "rows width"],
    *,
    weights: Float[Tensor, " groups"],
    scale: Float[Tensor, " width"] | None = None,
) -> tuple[Float[Tensor, "rows groups"], Float[Tensor, "rows width"]]:
    """Turn group sums into sums of gradients; returns the squared error of every (row, prefix), and the residual.

    ``scale`` multiplies each dimension's error before it is squared.
    """
    assert sums.is_contiguous()
    rows, groups, width = sums.shape
    blocks = -(-width // _WIDTH_BLOCK)
    squares = sums.new_empty(rows, groups, blocks)
    residual = torch.empty_like(left, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(sums):
        _grad_sums_kernel[(rows, blocks)](
            sums,
            left.contiguous(),
            weights,
            weights if scale is None else scale.contiguous(),
            squares,
            residual,
            width,
            blocks,
            GROUPS=groups,
            BLOCK=_WIDTH_BLOCK,
            SCALED=scale is not None,
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
    assert all(array.is_contiguous() for array in (grad_sums, table))
    active = bag.numel()
    out = grad_sums.new_empty(active)
    if not active:
        return out
    tile = dots_tile(grad_sums.shape[1])
    with torch.cuda.device_of(out):
        _dots_kernel[(triton.cdiv(active, tile.entries),)](
            out,
            grad_sums,
            table,
            bag,
            feature,
            active,
            WIDTH=grad_sums.shape[1],
            ENTRIES=tile.entries,
            BLOCK=tile.block,
            ACC=_sum_type(table),
            num_warps=tile.warps,
        )
    return out


def _sum_type(table: Tensor) -> Any:
    return tl.float64 if table.dtype == torch.float64 else tl.float32
