"""Training from a cache: read batches in order, step, log, save, and go on where an earlier run stopped.

    out/transcoder.safetensors, config.json    written when the run is complete, config.json last
    out/metrics.jsonl                          the record, a line every log_every steps and every checkpoint
    out/checkpoints/                           where a rerun goes on from
    out/<name>/                                the same for each entry of train.sweep

The cache is opened and read once, whatever the number of transcoders.
"""

import itertools
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from cache.config import CacheSettings
from cache.loader import Batch, Loader
from common.device import choose_device
from common.distributed import ALONE, Ranks
from common.errors import DiskError, NumericalError
from common.processes import locks
from common.processes.signals import leave_for, noted_signals
from common.progress import Progress
from common.units import in_bytes
from train.arrays.feed import Feed
from train.config import LogSettings, TrainSettings
from train.context import TrainingContext
from train.kinds.source import Source
from train.member import Member, complete_config, remove_run, run_identity
from train.plan import best_dtype, check_fit, resolved_members
from train.record.begun import begun_dtype
from train.record.held_out_fvu import HeldOut
from train.resolved import ResolvedSettings
from transcoder.sharded import UNSHARDED, Shard


def train_layer(
    *,
    cache: Path,
    out: Path,
    settings: TrainSettings,
    device: str,
    fresh: bool,
    progress: Progress,
    log: LogSettings,
    cache_settings: CacheSettings | None = None,
) -> dict[str, Any]:
    """Train one transcoder, and those of the sweep, into ``out``; a rerun goes on, and a complete run does not change.

    Returns config.json's contents, with the sweep's under ``sweep``. Raises MismatchError where ``out`` holds a run of
    other settings or another cache, NumericalError if data or loss are not finite, InUseError if another process trains
    there. On SIGTERM and SIGINT it saves, then raises SystemExit(143) or KeyboardInterrupt.
    """
    return train_layers(
        caches=[cache],
        out=out,
        settings=settings,
        device=device,
        fresh=fresh,
        progress=progress,
        log=log,
        cache_settings=cache_settings,
    )


def train_layers(
    *,
    caches: Sequence[Path],
    out: Path,
    settings: TrainSettings,
    device: str,
    fresh: bool,
    progress: Progress,
    log: LogSettings,
    cache_settings: CacheSettings | None = None,
) -> dict[str, Any]:
    """The same for dictionaries that are trained from one layer's cache, or from the caches of several layers.

    Raises MismatchError also for caches whose rows are different tokens.
    """
    ranks = Ranks.current()
    chosen_device = str(choose_device(device))
    with ExitStack() as stack:
        no_lock: DiskError | None = None
        if ranks.rank == 0:
            try:
                stack.enter_context(locks.lock(out / ".lock"))
            except DiskError as error:
                if fresh:
                    raise
                # A complete run needs no lock: it may be on a read-only disk.
                no_lock = error
        source = Source.open(caches, settings, cache_settings, device=chosen_device)
        context = _context(source, settings, device=chosen_device, progress=progress, ranks=ranks)
        configs = _complete(out, settings, context=context, log=log, fresh=fresh, no_lock=no_lock)
    config = configs.pop("")
    return config | ({"sweep": configs} if configs else {})


def _context(
    source: Source, settings: TrainSettings, *, device: str, progress: Progress, ranks: Ranks
) -> TrainingContext:
    reader = source.reader
    units = source.units
    held_out = None
    if settings.held_out_rows:
        held_out = HeldOut.read(reader, units, rows=settings.held_out_rows, view=settings.source, device=device)
    shard = Shard(ranks.rank, ranks.world) if settings.shard_dictionary else UNSHARDED
    return TrainingContext(reader, source.readers, units, held_out, device, ranks, shard, progress)


def _complete(
    out: Path,
    settings: TrainSettings,
    *,
    context: TrainingContext,
    log: LogSettings,
    fresh: bool,
    no_lock: DiskError | None,
) -> dict[str, dict[str, Any]]:
    """Train the transcoders that are not complete; returns config.json of all of them, by name.

    Raises ``no_lock``, the reason why there is no lock, if there is something to train.
    """
    resolved = _resolved(out, settings, context=context, fresh=fresh)
    for chosen in resolved.values():
        context.shard.check(dict_size=chosen.dict_size, top_k=chosen.top_k)
    if fresh and context.ranks.rank == 0:
        for name in resolved:
            remove_run(out / name)
    context.ranks.wait()

    complete: dict[str, dict[str, Any]] = {}
    for name, chosen in resolved.items():
        identity = run_identity(chosen, reader=context.reader, units=context.units)
        if config := complete_config(out / name, identity):
            complete[name] = config
    missing = {name: chosen for name, chosen in resolved.items() if name not in complete}
    if missing and no_lock:
        raise no_lock
    check_fit(missing, units=context.units, device=context.device, out=out)

    training = {name: Member(out / name, chosen, context=context, log=log) for name, chosen in missing.items()}
    if training:
        _train(list(training.values()), context=context)
    made = {name: member.finish() for name, member in training.items()}
    context.ranks.wait()
    return {name: complete.get(name) or made[name] for name in resolved}


def _resolved(
    out: Path, settings: TrainSettings, *, context: TrainingContext, fresh: bool
) -> dict[str, ResolvedSettings]:
    """The settings of the run's transcoders by name; notes which dtype ``auto`` is, where a GPU or the run decides."""
    begun = None if fresh else begun_dtype(out)
    best = best_dtype(context.device, context.ranks)
    if settings.compute_dtype == "auto" and begun and begun != best:
        context.progress.note(f"The run goes on in {begun}, in which it was begun; here it would be {best}.")
    elif settings.compute_dtype == "auto" and not begun and context.device != "cpu":
        able = "computes" if best == "bfloat16" else "does not compute"
        context.progress.note(f"train.compute_dtype: {best}; {context.device} {able} in bfloat16.")
    return resolved_members(settings, context.reader, context.units, device_dtype=begun or best)


def _train(training: list[Member], *, context: TrainingContext) -> None:
    """Train every member to its last step, on the same batches."""
    settings = training[0].settings
    progress = context.progress
    start = min(member.state.step for member in training)
    progress.begin("train", total=settings.steps, unit="steps", done=start)
    with noted_signals() as signals, _loader(settings, context, start=start) as loader:
        batches = itertools.islice(loader, settings.steps - start)
        for batch in Feed(batches, torch.device(context.device)):
            _take(training, batch, context=context)
            # All processes must stop after the same step, because they share one checkpoint.
            if number := context.ranks.largest(signals[0] if signals else 0, context.device):
                _leave(training, number, progress=progress)
    progress.end()
    if context.device.startswith("cuda"):
        peak = torch.cuda.max_memory_allocated(context.device)
        progress.note(f"Peak memory on {context.device}: {in_bytes(peak)}.")


def _take(training: list[Member], batch: Batch, *, context: TrainingContext) -> None:
    """Give a batch, in training units, to every member; show the metrics of the first."""
    source = context.units.source(batch.source)
    target = context.units.target(batch.target)
    try:
        shown = [member.take(source, target=target, batch=batch.index) for member in training]
    except NumericalError as error:
        number = max(member.first_bad for member in training)
        reason = _why_not_finite(_whole_batch(number, training[0].settings, context=context))
        raise NumericalError(f"{error.what} {reason}", where=error.where, remedy=error.remedy) from None
    context.progress.advance(1, **shown[0])


def _whole_batch(number: int, settings: ResolvedSettings, *, context: TrainingContext) -> Batch:
    """Read a batch again, with all processes' rows; on a GPU a bad batch is noticed only some steps later."""
    with _loader(settings, replace(context, ranks=ALONE), start=number) as loader:
        return loader.batch(number)


def _why_not_finite(batch: Batch) -> str:
    """Which documents of a batch have NaN or infinity."""
    bad = ~(batch.source.isfinite().all(dim=1).cpu() & batch.target.isfinite().all(dim=1).cpu())
    documents = sorted(set(batch.document[bad.numpy()].tolist()))
    if not documents:
        return f"The rows of batch {batch.index} are finite, so the learning rate may be too high."
    named = ", ".join(map(str, documents[:5])) + (", ..." if len(documents) > 5 else "")
    return f"Batch {batch.index} (epoch {batch.epoch}) has NaN or infinity in rows of document {named}."


def _loader(settings: ResolvedSettings, context: TrainingContext, *, start: int) -> Loader:
    on_gpu = context.device.startswith("cuda")
    return Loader(
        context.reader,
        split="train",
        batch_rows=settings.batch_rows,
        seed=settings.order_seed,
        start_batch=start,
        rank=context.data_ranks.rank,
        world=context.data_ranks.world,
        # A fast GPU takes 10 GB of rows a second. Beside an H100 one thread gathered 6, two 10, four 8.
        threads=2 if on_gpu else 1,
        pin_memory=on_gpu,
        view=settings.source,
    )


def _leave(training: list[Member], number: int, *, progress: Progress) -> NoReturn:
    """Save every member and stop, because of a signal."""
    for member in training:
        member.save()
    step = training[0].state.step
    progress.note(f"Stopped by {signal.Signals(number).name} after step {step:,}; its checkpoint is saved.")
    progress.end()
    leave_for(number)
