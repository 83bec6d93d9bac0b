"""The record of a run: metrics.jsonl, one JSON object a line, and its mirror at Weights & Biases.

A line has no time and nothing about the machine, so that an interrupted run leaves the same file as any other: when a
run goes on, the file is cut to the length in the checkpoint. The checkpoint also has the hash of the file up to there,
so that a changed log is noticed. The mirror may fail at any time; training goes on.

There are three FVUs, with three names: ``batch_fvu`` is that of one training batch over the cache's variance,
``held_out_fvu`` that of a sample of held-out rows with the training rule, and ``fvu``, in an evaluation's metrics.json,
that of all held-out rows with the rule for evaluation. Earlier releases logged the first as ``fvu``.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import xxhash

from common import disk
from common.errors import DiskError
from common.progress import Progress
from common.sealed.tensors import FileSeal
from train.config import LogSettings

LOG_FILE = "metrics.jsonl"
DAMAGED = "log_was_damaged"
_EARLIER_NAMES = ("fvu", "fvu_min", "fvu_max", "fvu_mean", "fvu_per_prefix")


class MetricsLog:
    """metrics.jsonl, open for appending after the part that ``seal`` covers; everything after that part is cut off.

    If that part was changed, a note says so, its complete lines are kept, and a line marks where this was found.
    Lines that cannot be written stay in memory and are tried again with the next line; ``flush`` raises DiskError for
    them. A seal of an earlier release has an empty hash, and covers only the length.
    """

    def __init__(self, path: Path, *, seal: FileSeal, step: int, progress: Progress) -> None:
        self._path = path
        self._pending = b""
        data = path.read_bytes() if path.is_file() else b""
        kept = data[: seal.size]
        is_intact = len(kept) == seal.size and seal.hash in ("", _hash_of(kept))
        if not is_intact:
            kept = kept[: kept.rfind(b"\n") + 1]
            progress.note(
                f"{path}: the log was cut or changed after the checkpoint of step {step} was written. "
                "Training goes on; a line in the log marks where this was found."
            )
        if len(data) > len(kept):
            disk.truncate(path, len(kept))
        self._size = len(kept)
        self._hash = xxhash.xxh3_128(kept)
        if not is_intact:
            self.add({"step": step, DAMAGED: True})

    @property
    def seal(self) -> FileSeal:
        """The seal of the file once everything is written."""
        return FileSeal(self._size, self._hash.hexdigest())

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line; readers of the file see it at once, unless the disk is full."""
        data = (json.dumps(line) + "\n").encode()
        self._size += len(data)
        self._hash.update(data)
        self._pending += data
        self._write()

    def flush(self) -> None:
        """Return when every line is on the disk. Raises DiskError if they cannot be written."""
        error = self._write()
        if error:
            what = f"The training log cannot be written: {error}."
            raise DiskError(
                what,
                where=self._path,
                remedy="Free some space and run again: training goes on from its last checkpoint.",
            ) from error
        if self._size:
            disk.flush(self._path)

    def _write(self) -> OSError | DiskError | None:
        """Write what is pending; returns why it could not all be written."""
        try:
            disk.make_folder(self._path.parent)
            with self._path.open("ab", buffering=0) as file:
                while self._pending:
                    self._pending = self._pending[file.write(self._pending) :]
        except (OSError, DiskError) as error:
            return error
        return None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl with today's names; an incomplete last line is left out."""
    return [_renamed(json.loads(line)) for line in path.read_bytes().split(b"\n")[:-1]]


def _renamed(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of an earlier release, with the batch's FVU under its present name."""
    return {f"batch_{name}" if name in _EARLIER_NAMES else name: value for name, value in line.items()}


def _hash_of(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


class WandbMirror:
    """The same lines at Weights & Biases. After the first failure a note says so, the mirror ends, and training goes
    on."""

    def __init__(self, settings: LogSettings, *, folder: Path, config: Mapping[str, Any], progress: Progress) -> None:
        self._progress = progress
        self._run = None
        if settings.wandb:
            self._run = self._attempt(lambda: _begin(settings, folder=folder, config=config))

    def add(self, line: Mapping[str, Any]) -> None:
        """Mirror a line; lists become one number a prefix."""
        run = self._run
        if run is not None:
            self._attempt(lambda: run.log(flat(line), step=line["step"]))

    def close(self) -> None:
        """End the run there."""
        run = self._run
        if run is not None:
            self._attempt(run.finish)

    def _attempt(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            # The error's text may contain the key, so only its type is shown.
            self._run = None
            self._progress.note(
                f"Weights & Biases was switched off after an error ({type(error).__name__}). "
                "metrics.jsonl still gets every metric."
            )
            return None


def _begin(settings: LogSettings, *, folder: Path, config: Mapping[str, Any]) -> Any:
    """Start a wandb run that records metrics and settings, but nothing about the machine, the console or the key."""
    import wandb

    quiet = wandb.Settings(console="off", silent=True, x_disable_meta=True, x_disable_stats=True, disable_git=True)
    return wandb.init(
        project=settings.wandb_project,
        mode=settings.wandb_mode,
        dir=str(folder),
        name=folder.name,
        config=dict(config),
        settings=quiet,
    )


def flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """One number a name: ``l0_per_prefix: [a, b]`` becomes ``l0_per_prefix/0: a`` and ``/1: b``."""
    found: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, list):
            found |= {f"{name}/{number}": entry for number, entry in enumerate(value)}
        else:
            found[name] = value
    return found
