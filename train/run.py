"""Training from a cache: read in order, step, log, save, and go on where an earlier run stopped.

    out/transcoder.safetensors, config.json    written when the run is complete, config.json last
    out/metrics.jsonl                          the record, a line every log_every steps and every checkpoint
    out/checkpoints/                           what a rerun goes on from
    out/<name>/                                the same for each entry of train.sweep

The cache is opened and read once, whatever the number of transcoders.
"""

import itertools
import signal
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from cache.config import CacheSettings
from cache.loader import Batch, open_loader
from cache.reader import CacheReader
from common import disk
from common.device import choose_device, has_bfloat16
from common.errors import NumericalError
from common.progress import Progress
from train.config import LogSettings, TrainSettings
from train.feed import Feed
from train.held_out_fvu import HeldOut
from train.log import flat
from train.member import Run, Surroundings, complete_config, remove_run, run_identity
from train.plan import check_fit, resolved_members
from train.ranks import ALONE, Ranks
from train.resolved import ResolvedSettings
from train.units import units_of
from transcoder.sharded import WHOLE, Shard


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
    """Train one transcoder, and those of the sweep, into ``out``; a rerun goes on, and a complete run is left alone.

    Returns what config.json says, with the sweep's under ``sweep``. Raises MismatchError where ``out`` holds a run of
    other settings or another cache, NumericalError where data or loss are not finite, InUseError where another process
    trains there. SIGTERM and SIGINT save, and leave with SystemExit(143) and KeyboardInterrupt.
    """
    ranks, place = Ranks.current(), str(choose_device(device))
    with ExitStack() as held:
        if ranks.rank == 0:
            held.enter_context(disk.lock(out / ".lock"))
        reader = CacheReader.open_near(cache, cache_settings, device=place)
        around = _surroundings(reader, settings, device=place, progress=progress, ranks=ranks)
        said = _complete(out, settings, around=around, log=log, fresh=fresh)
    return said.pop("") | ({"sweep": said} if said else {})


def _complete(
    out: Path, settings: TrainSettings, *, around: Surroundings, log: LogSettings, fresh: bool
) -> dict[str, dict[str, Any]]:
    """config.json of every transcoder, by name, having trained those that were not complete."""
    resolved = resolved_members(settings, around.reader, around.units, device=around.device)
    if settings.compute_dtype == "auto":
        able = "computes" if has_bfloat16(around.device) else "does not compute"
        around.progress.note(f"train.compute_dtype: {resolved[''].compute_dtype}; {around.device} {able} in bfloat16")
    for one in resolved.values():
        around.shard.check(dict_size=one.dict_size, top_k=one.top_k)
    if fresh and around.ranks.rank == 0:
        for name in resolved:
            remove_run(out / name)
    around.ranks.wait()
    found = {
        name: complete_config(out / name, run_identity(one, reader=around.reader, units=around.units))
        for name, one in resolved.items()
    }
    wanted = {name: one for name, one in resolved.items() if found[name] is None}
    check_fit(wanted, units=around.units, device=around.device, out=out)
    runs = {name: Run(out / name, one, around=around, log=log) for name, one in wanted.items()}
    if runs:
        _train(list(runs.values()), around=around)
    made = {name: run.finish() for name, run in runs.items()}
    around.ranks.wait()
    return {name: found[name] or made[name] for name in resolved}


def _surroundings(
    reader: CacheReader, settings: TrainSettings, *, device: str, progress: Progress, ranks: Ranks
) -> Surroundings:
    units = units_of(reader, settings.source)
    held_out = None
    if settings.held_out_rows:
        held_out = HeldOut.read(reader, units, rows=settings.held_out_rows, view=settings.source, device=device)
    shard = Shard(ranks.rank, ranks.world) if settings.shard_dictionary else WHOLE
    return Surroundings(reader, units, held_out, device, ranks, shard, progress)


def _train(runs: list[Run], *, around: Surroundings) -> None:
    """Bring every run to its last step, from one reading."""
    settings, progress = runs[0].settings, around.progress
    start = min(run.state.step for run in runs)
    progress.begin("train", total=settings.steps, unit="steps", done=start)
    with _stopping() as asked, _loader(settings, around, start=start) as loader:
        batches = itertools.islice(loader, settings.steps - start)
        for batch in Feed(batches, torch.device(around.device)):
            _take(runs, batch, around=around)
            if number := around.ranks.agree(asked[0] if asked else 0, torch.device(around.device)):
                _leave(runs, number, progress=progress)
    progress.end()


def _take(runs: list[Run], batch: Batch, *, around: Surroundings) -> None:
    """Hand a batch, in training units, to every run; report the first run's figures."""
    source, target = around.units.source(batch.source), around.units.target(batch.target)
    try:
        said = [run.take(source, target=target, batch=batch.index) for run in runs]
    except NumericalError as error:
        culprits = _culprits(_whole_batch(max(run.first_bad for run in runs), runs[0].settings, around=around))
        raise NumericalError(error.what + culprits, where=error.where, remedy=error.remedy) from None
    around.progress.advance(1, **flat(said[0] or {}))


def _whole_batch(number: int, settings: ResolvedSettings, *, around: Surroundings) -> Batch:
    """A batch read again, all processes' rows of it; on a card it is noticed only some steps later."""
    with _loader(settings, replace(around, ranks=ALONE), start=number) as loader:
        return loader.batch(number)


def _culprits(batch: Batch) -> str:
    """Which documents of a batch hold what no training survives."""
    bad = ~(batch.source.isfinite().all(dim=1).cpu() & batch.target.isfinite().all(dim=1).cpu())
    documents = sorted(set(batch.document[bad.numpy()].tolist()))
    if not documents:
        return f"; the data of batch {batch.index} are finite, so the learning rate may be too high"
    named = ", ".join(map(str, documents[:5])) + (", ..." if len(documents) > 5 else "")
    return f"; batch {batch.index} (epoch {batch.epoch}) holds NaN or infinity in rows of document {named}"


def _loader(settings: ResolvedSettings, around: Surroundings, *, start: int) -> Any:
    return open_loader(
        around.reader,
        split="train",
        batch_rows=settings.batch_rows,
        seed=settings.order_seed,
        start_batch=start,
        rank=around.data_ranks.rank,
        world=around.data_ranks.world,
        pin_memory=around.device.startswith("cuda"),
        view=settings.source,
    )


def _leave(runs: list[Run], number: int, *, progress: Progress) -> None:
    """Save every run and go, as the signal asked."""
    for run in runs:
        run.save()
    progress.note(f"stopped by {signal.Signals(number).name} after step {runs[0].state.step}, which is saved")
    progress.end()
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


@contextmanager
def _stopping() -> Generator[list[int]]:
    """While the block runs, SIGTERM and SIGINT are noted in the list; a second one acts as it would have before."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {int(number): signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
