"""Before training: steps, epochs, memory, disk and time, by arithmetic and from a few timed steps on random rows.

Of a dictionary with P weights and F features, one transcoder needs

    memory   16 P (weights, two moments, gradient; 18 P in bfloat16; 4 P less with beta1 0, which needs no first moment;
             4 P more where processes exchange the gradient)
             + 8 F + pre-activations + batch + held-out rows
    disk     (12 P + 8 F) for each checkpoint kept, one more while it is written, the best; 4 P for the result
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.config import CacheSettings
from cache.reader import CacheReader
from cache.tools.concentration import concentration
from common import disk
from common.device import free_memory, has_bfloat16
from common.distributed import Ranks
from common.errors import CapacityError
from common.units import in_bytes
from train.arrays.units import Units
from train.arrays.workspace import BLOCK_ROWS
from train.config import TrainSettings
from train.kinds.registry import KINDS
from train.kinds.source import Source
from train.record.begun import begun_dtype
from train.resolved import ComputeDtype, ResolvedSettings, members, resolve
from transcoder.rules.registry import RULES

# After one step to warm up. A plan must take only seconds.
_TIMED_STEPS = 3
# Enough to find one row in a thousand, and seconds even at width 4,608.
_CONCENTRATION_ROWS = 65_536


@dataclass(frozen=True)
class TrainPlan:
    """What a run will need, for all transcoders of its sweep. Memory is that of this process, seconds are for the
    steps; ``held_out_documents`` is the number of documents to measure on: with few, intervals are wide.
    ``concentration`` is a warning if a few rows or dimensions have most of the target's variance, else ''."""

    device: str
    transcoders: int
    dict_size: int
    prefixes: tuple[int, ...]
    top_k: int
    parameters: int
    steps: int
    batch_rows: int
    epochs: float
    held_out_documents: int
    concentration: str
    memory_bytes: int
    free_memory_bytes: int
    disk_bytes: int
    free_disk_bytes: int
    seconds: float


def plan_train(
    *, cache: Path, settings: TrainSettings, device: str, out: Path, cache_settings: CacheSettings | None = None
) -> TrainPlan:
    """What ``train_layer`` would need; writes nothing. Raises as ``plan_layers``."""
    return plan_layers(caches=[cache], settings=settings, device=device, out=out, cache_settings=cache_settings)


def plan_layers(
    *,
    caches: Sequence[Path],
    settings: TrainSettings,
    device: str,
    out: Path,
    cache_settings: CacheSettings | None = None,
) -> TrainPlan:
    """What ``train_layers`` would need; writes nothing.

    Raises what it would raise before its first step: CapacityError if memory or disk are too small.
    """
    source = Source.open(caches, settings, cache_settings, device=device)
    reader = source.reader
    units = source.units
    dtype = begun_dtype(out) or best_dtype(device)
    resolved = resolved_members(settings, reader, units, device_dtype=dtype)
    memory, space = check_fit(resolved, units=units, device=device, out=out)
    first = resolved[""]
    return TrainPlan(
        device=device,
        transcoders=len(resolved),
        dict_size=first.dict_size,
        prefixes=first.prefixes,
        top_k=first.top_k,
        parameters=sum(KINDS[member.kind].parameters(member, units) for member in resolved.values()),
        steps=first.steps,
        batch_rows=first.batch_rows,
        epochs=first.steps * first.batch_rows / len(reader.split("train")),
        held_out_documents=len(np.unique(reader.split("held_out").document)),
        concentration=_concentration(source.readers),
        memory_bytes=memory,
        free_memory_bytes=free_memory(device),
        disk_bytes=space,
        free_disk_bytes=disk.free_bytes(out),
        seconds=sum(member.steps * _seconds_a_step(member, units, device=device) for member in resolved.values()),
    )


def resolved_members(
    settings: TrainSettings, reader: CacheReader, units: Units, *, device_dtype: ComputeDtype
) -> dict[str, ResolvedSettings]:
    """The settings of a run's transcoders by name, with everything that follows from the cache and the device."""
    model = str(reader.identity.get("model", ""))
    d_target = units.width
    return {
        name: resolve(stated, model=model, d_target=d_target, device_dtype=device_dtype)
        for name, stated in members(settings).items()
    }


def best_dtype(device: str, ranks: Ranks | None = None) -> ComputeDtype:
    """bfloat16 where every process's GPU computes in it, and float32 elsewhere: all must use the same."""
    everywhere = (ranks or Ranks.current()).smallest(int(has_bfloat16(device)), device)
    return "bfloat16" if everywhere else "float32"


def check_fit(resolved: dict[str, ResolvedSettings], *, units: Units, device: str, out: Path) -> tuple[int, int]:
    """Bytes of memory, and of disk in addition to what is there, that a run needs. Raises CapacityError if too few are
    free."""
    memory = sum(memory_bytes(member, units, device=device) for member in resolved.values())
    there = sum(disk.size_bytes(path) for name in resolved for path in (out / name / "checkpoints").glob("*"))
    space = max(0, sum(disk_bytes(member, units) for member in resolved.values()) - there)
    for what, needed, free, remedy in (
        (
            "memory",
            memory,
            free_memory(device),
            "Use a smaller train.dict_size or train.batch_rows, or train.shard_dictionary.",
        ),
        ("disk space", space, disk.free_bytes(out), "Free some, or keep fewer checkpoints (train.keep)."),
    ):
        if needed > free:
            problem = f"Training needs {in_bytes(needed)} of {what}, but {in_bytes(free)} are free."
            raise CapacityError(problem, remedy=remedy)
    return memory, space


def memory_bytes(settings: ResolvedSettings, units: Units, *, device: str) -> int:
    """Bytes that one transcoder's training needs on its device."""
    processes = Ranks.current().world if settings.shard_dictionary else 1
    features = settings.dict_size // processes
    low = settings.compute_dtype == "bfloat16"
    width = units.source_mean.numel() + units.target_mean.numel()
    in_blocks = device == "cpu" and RULES[settings.activation].load().scope != "batch"
    block = min(settings.batch_rows, BLOCK_ROWS) if in_blocks else settings.batch_rows
    decoded = settings.batch_rows * len(settings.prefixes) * units.target_mean.numel()
    rows = (3 * settings.batch_rows + settings.held_out_rows) * width
    weights = KINDS[settings.kind].parameters(settings, units) // processes
    exchanged = Ranks.current().world > processes
    return (
        weights * ((18 if low else 16) + 4 * exchanged - 4 * (settings.beta1 == 0))
        + 8 * KINDS[settings.kind].features(settings, units) // processes
        + block * features * (2 if low else 4)
        + 4 * (rows + 2 * decoded)
    )


def disk_bytes(settings: ResolvedSettings, units: Units) -> int:
    """The most bytes that one transcoder's run has on disk at a time."""
    weights = KINDS[settings.kind].parameters(settings, units)
    state = (12 - 4 * (settings.beta1 == 0)) * weights + 8 * KINDS[settings.kind].features(settings, units)
    return (settings.keep + 2) * state + 4 * weights


def _concentration(readers: Sequence[CacheReader]) -> str:
    """The warnings of all layers."""
    found = [concentration(reader, limit_rows=_CONCENTRATION_ROWS).warning for reader in readers]
    if len(found) == 1:
        return found[0]
    named = zip(readers, found, strict=True)
    return "; ".join(f"layer {reader.identity.get('layer')}: {warning}" for reader, warning in named if warning)


def _seconds_a_step(settings: ResolvedSettings, units: Units, *, device: str) -> float:
    """The time of a step on random rows, all features alive."""
    step = KINDS[settings.kind].timed_step(settings, units, device=device)
    times: list[float] = []
    for _ in range(1 + _TIMED_STEPS):
        began = time.perf_counter()
        metrics = step()
        float(metrics.l2_loss)  # waits for the device
        times.append(time.perf_counter() - began)
    return min(times[1:])
