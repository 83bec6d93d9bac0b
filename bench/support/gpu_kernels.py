"""The Triton kernels at real sizes beside their PyTorch twins, and a segment's statistics: gpu_kernels.py DEVICE SHAPE

Bags are those of a step's selection: by row and group for the decode, by feature for a weight gradient, once with a
feature that fires on every row. A row says the kernel's time, the bytes it must read a second (every entry's row of the
table), the twin's time, and how far the two are apart, relative to the twin in float64.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
from gpu_step import milliseconds
from rows import Rows
from step_systems import Problem, problem

from cache.format.statistics import measure
from train.arrays import optim
from train.arrays.parameters import Parameters
from train.config import TrainSettings
from train.resolved import resolve
from transcoder import decode, kernels
from transcoder.decode import Bags, bags_of, transpose
from transcoder.rules.topk import select_topk
from transcoder.sparse_code import SparseCode


@dataclass(frozen=True)
class Entries:
    """A selection with both of its ways of being walked."""

    selection: SparseCode
    bags: Bags
    rows_by_feature: torch.Tensor
    values_by_feature: torch.Tensor
    offsets_by_feature: torch.Tensor


def entries_of(problem: Problem, dtype: torch.dtype, *, one_always_fires: bool) -> Entries:
    bias = problem.bias.clone()
    if one_always_fires:
        bias[0] += 100.0
    selection = select_topk((problem.source @ problem.encoder.T + bias).to(dtype), top_k=problem.top_k)
    index = transpose(selection, problem.sizes[2])
    order = index.order.long()
    values = selection.values[order]
    return Entries(selection, bags_of(selection, problem.prefixes), selection.rows()[order], values, index.offsets)


def compare(
    kernel: Callable[[], torch.Tensor],
    twin: Callable[[torch.dtype | None], torch.Tensor],
    *,
    read_bytes: int,
    device: torch.device,
) -> dict[str, object]:
    """``twin`` computes in a dtype that it is given, or as training does where that is None."""
    exact = twin(torch.float64).double()
    found = kernel().clone()
    difference = float((found.double() - exact).norm() / exact.norm())
    again = torch.equal(found, kernel())
    often = (5, 5) if device.type == "cuda" else (1, 1)
    times = [
        median(milliseconds(call, often[1], device) for _ in range(often[0])) for call in (kernel, partial(twin, None))
    ]
    return {
        "value": round(times[0], 3),
        "unit": "ms",
        "gb_per_s": round(read_bytes / times[0] / 1e6, 1),
        "twin_ms": round(times[1], 3),
        "difference": f"{difference:.1e}",
        "same_bits_again": again,
    }


def decode_sums(problem: Problem, dtype: torch.dtype) -> dict[str, object]:
    entries = entries_of(problem, dtype, one_always_fires=False)
    table, selection = problem.decoder.to(dtype), entries.selection
    out = torch.empty(entries.bags.offsets.numel() - 1, problem.sizes[1], device=table.device)

    def kernel() -> torch.Tensor:
        kernels.weighted_sums_(out, table, selection.features, weight=selection.values, offsets=entries.bags.offsets)
        return out

    twin = partial(_twin, table, selection.features, selection.values, entries.bags.offsets)
    return compare(kernel, twin, read_bytes=_bytes(table, selection.values), device=table.device)


def gradient_sums(problem: Problem, dtype: torch.dtype, *, one_always_fires: bool = False) -> dict[str, object]:
    entries = entries_of(problem, dtype, one_always_fires=one_always_fires)
    table = problem.source.to(dtype)
    out = torch.empty(problem.sizes[2], problem.sizes[1], device=table.device)
    given = entries.rows_by_feature, entries.values_by_feature, entries.offsets_by_feature

    def kernel() -> torch.Tensor:
        kernels.weighted_sums_(out, table, given[0], weight=given[1], offsets=given[2])
        return out

    return compare(kernel, partial(_twin, table, *given), read_bytes=_bytes(table, given[1]), device=table.device)


def activation_dots(problem: Problem, dtype: torch.dtype) -> dict[str, object]:
    entries = entries_of(problem, dtype, one_always_fires=False)
    table, selection, bag = problem.decoder.to(dtype), entries.selection, entries.bags.bag
    grads = torch.randn(entries.bags.offsets.numel() - 1, problem.sizes[1], device=table.device).to(dtype)

    def twin(kind: torch.dtype | None) -> torch.Tensor:
        left, right = (array.to(kind or dtype) for array in (grads, table))
        pairs = zip(bag.split(2**16), selection.features.split(2**16), strict=True)
        return torch.cat([(left[b] * right[f]).sum(dim=1) for b, f in pairs])

    kernel = partial(kernels.dots, grads, table, bag=bag, feature=selection.features)
    return compare(kernel, twin, read_bytes=2 * _bytes(table, selection.values), device=table.device)


def whole_update(problem: Problem) -> dict[str, object]:
    """Adam, unit rows and the copy in bfloat16 of all arrays: in one pass, and as PyTorch does it, each alone."""
    _, width, dict_size = problem.sizes
    device = problem.source.device
    settings = resolve(TrainSettings(prefixes=problem.prefixes, top_k=problem.top_k), model="", d_target=width)
    weights = Parameters(
        problem.encoder.clone(), problem.bias.clone(), problem.decoder.clone(), torch.zeros(width, device=device)
    )
    gradients = Parameters(**{name: torch.randn_like(array) for name, array in weights.tensors().items()})
    rounded = Parameters(**{name: array.bfloat16() for name, array in weights.tensors().items()})
    given = {"moments": optim.Moments.zero(weights), "settings": settings, "step": 1, "rounded": rounded}
    times: dict[bool, float] = {}

    def update(one_pass: bool) -> None:
        optim.in_one_pass = lambda _: one_pass
        optim.update_(weights, gradients, **given)
        if not one_pass:
            for name, array in rounded.tensors().items():
                array.copy_(weights.tensors()[name])

    rounds, steps = (5, 5) if device.type == "cuda" else (1, 1)
    for one_pass in (True, False):
        call = partial(update, one_pass)
        call()
        times[one_pass] = median(milliseconds(call, steps, device) for _ in range(rounds))
    moved = 2 * dict_size * width * (7 * 4 + 2)
    speed = round(moved / times[True] / 1e6, 1)
    return {"value": round(times[True], 3), "unit": "ms", "gb_per_s": speed, "twin_ms": round(times[False], 3)}


def segment_statistics(problem: Problem) -> dict[str, object]:
    """What a harvest measures of a segment of bfloat16 rows (a whole one has 131,072), there and on the CPU."""
    rows = problem.source.to(torch.bfloat16)
    rows = rows.repeat(32 if rows.device.type == "cuda" else 1, 1)
    kept = np.arange(len(rows)) % 100 != 0
    given = {"kept": kept, "first": 0, "error": np.zeros(len(rows))}
    found, again = (measure(rows, **given).pack() for _ in range(2))
    times: list[float] = []
    for placed in (rows, rows.cpu()):
        started = time.perf_counter()
        expected = measure(placed, **given).pack()
        times.append(1e3 * (time.perf_counter() - started))
    moments = slice(1, 1 + 2 * rows.shape[1])  # means and spreads; row numbers follow, which would hide them
    return {
        "value": round(times[0], 2),
        "unit": "ms",
        "rows": len(rows),
        "gb_per_s": round(rows.numel() * 2 / times[0] / 1e6, 1),
        "cpu_ms": round(times[1], 2),
        "difference": f"{np.linalg.norm(found[moments] - expected[moments]) / np.linalg.norm(expected[moments]):.1e}",
        "same_bits_again": bool(np.array_equal(found, again)),
    }


def _twin(
    table: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, offsets: torch.Tensor, kind: torch.dtype | None
) -> torch.Tensor:
    return decode.weighted_sums(table.to(kind or table.dtype), index, weight, offsets=offsets)


def _bytes(table: torch.Tensor, entries: torch.Tensor) -> int:
    return entries.numel() * table.shape[1] * table.element_size()


def main() -> None:
    device, shape = sys.argv[1:]
    rows = Rows()
    made = problem(shape, device)
    rows.attempt(f"update of all arrays; {shape}", partial(whole_update, made))
    rows.attempt(f"statistics of a segment's side; {shape}", partial(segment_statistics, made))
    for dtype in (torch.bfloat16, torch.float32):
        name = f"{str(dtype).removeprefix('torch.')}; {shape}"
        rows.attempt(f"sums, decode, {name}", partial(decode_sums, made, dtype))
        rows.attempt(f"sums, gradient, {name}", partial(gradient_sums, made, dtype))
        rows.attempt(
            f"sums, gradient, one feature on every row, {name}",
            partial(gradient_sums, made, dtype, one_always_fires=True),
        )
        rows.attempt(f"dots, {name}", partial(activation_dots, made, dtype))


if __name__ == "__main__":
    main()
