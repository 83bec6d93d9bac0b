"""Whole training steps on one device: python gpu_step.py DEVICE SHAPE SYSTEM... (SHAPE: rows,width,top_k,prefix,...)

Times of a step are medians over rounds of several, measured by the device's own events. A ratio is to the encoder
product in the same precision, where that was measured before it. Peak memory is what the step adds to batch and weights
that are there already, its own weights and optimiser included. It runs in the environment of a peer as well.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parent))
from rows import Rows
from step_systems import Problem, Step, dense, dictionary_learning, floor, nestcoder_step, problem, sae_lens, sparsify

_BF16 = {"compute_dtype": "bfloat16"}
SYSTEMS: dict[str, tuple[str, Callable[[Problem], Step]]] = {
    "floor fp32": ("highest", floor),
    "floor tf32": ("high", floor),
    "floor bf16": ("highest", partial(floor, dtype=torch.bfloat16)),
    "nestcoder fp32": ("highest", nestcoder_step),
    "nestcoder tf32": ("high", nestcoder_step),
    "nestcoder bf16": ("highest", partial(nestcoder_step, **_BF16)),
    "nestcoder bf16, launched one by one": ("highest", partial(nestcoder_step, plain=True, **_BF16)),
    "nestcoder bf16, a tenth dead": ("highest", partial(nestcoder_step, dead_share=0.1, **_BF16)),
    "nestcoder bf16, a tenth revived each step": (
        "highest",
        partial(nestcoder_step, dead_share=0.1, revived=True, **_BF16),
    ),
    "nestcoder bf16, batchtopk": ("highest", partial(nestcoder_step, activation="batchtopk", **_BF16)),
    "dense bf16": ("highest", partial(dense, by_group=True, amp=True)),
    "dense bf16, compiled": ("highest", partial(dense, by_group=True, amp=True, compiled=True)),
    "sparsify tf32": ("high", sparsify),
    "sparsify bf16": ("highest", partial(sparsify, amp=True)),
    "dictionary_learning tf32": ("high", dictionary_learning),
    "sae-lens tf32": ("high", sae_lens),
    "sae-lens bf16": ("highest", partial(sae_lens, amp=True)),
}


def measure(name: str, problem: Problem, *, rounds: int, steps: int, floors: dict[str, float]) -> dict[str, object]:
    precision, make = SYSTEMS[name]
    torch.set_float32_matmul_precision(precision)
    device = problem.source.device
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = make(problem)
    for _ in range(min(6, steps)):  # three steps of ours are plain, the next one is recorded
        step()
    never_waits = name.startswith("nestcoder")
    taken = [milliseconds(step, steps, device, never_waits=never_waits) for _ in range(rounds)]
    kind = name.partition(",")[0].rpartition(" ")[2]
    if name.startswith("floor"):
        floors[kind] = median(taken)
    found: dict[str, object] = {"value": round(median(taken), 3), "unit": "ms", "least": round(min(taken), 3)}
    if kind in floors:
        found["over_floor"] = round(median(taken) / floors[kind], 2)
    if device.type == "cuda":
        found["peak_mb"] = round((torch.cuda.max_memory_allocated() - before) / 1e6)
    return found


def milliseconds(step: Step, count: int, device: torch.device, *, never_waits: bool = False) -> float:
    """Of one of ``count`` steps in a row. Raises where one waits for the GPU that ``never_waits``."""
    if device.type != "cuda":
        started = time.perf_counter()
        for _ in range(count):
            step()
        return (time.perf_counter() - started) / count * 1e3
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    torch.cuda.set_sync_debug_mode("error" if never_waits else "default")
    for _ in range(count):
        step()
    torch.cuda.set_sync_debug_mode("default")
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / count


def main() -> None:
    device, shape, *names = sys.argv[1:]
    rows = Rows()
    made = problem(shape, device)
    floors: dict[str, float] = {}
    often = {"rounds": 5, "steps": 5} if device.startswith("cuda") else {"rounds": 1, "steps": 1}
    for name in names:
        rows.attempt(f"{name}; {shape}", partial(measure, name, made, floors=floors, **often))
        if device.startswith("cuda"):
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
