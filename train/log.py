"""The record of a run: metrics.jsonl, one JSON object a line, and its mirror at Weights & Biases.

A line holds nothing of the clock or the machine, so that an interrupted run leaves the same file as one that was not:
on resume the file is cut to the length that the checkpoint names. The mirror may fail at any time; training goes on.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common import disk
from common.progress import Progress
from train.config import LogSettings

LOG_FILE = "metrics.jsonl"


class MetricsLog:
    """metrics.jsonl, open for appending from ``size_bytes`` on; what lies behind is cut off."""

    def __init__(self, path: Path, *, size_bytes: int) -> None:
        there = path.stat().st_size if path.is_file() else 0
        self._path, self.size_bytes = path, min(size_bytes, there)
        if there > size_bytes:
            disk.truncate(path, size_bytes)

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a line; a reader of the file sees it at once."""
        data = (json.dumps(line) + "\n").encode()
        disk.make_folder(self._path.parent)
        with self._path.open("ab", buffering=0) as file:
            file.write(data)
        self.size_bytes += len(data)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a torn last line is left out."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


class WandbMirror:
    """The same lines at Weights & Biases. The first failure ends the mirror with a note, never the training."""

    def __init__(self, settings: LogSettings, *, folder: Path, config: Mapping[str, Any], progress: Progress) -> None:
        self._progress, self._run = progress, None
        if settings.wandb:
            self._run = self._attempt(lambda: _begin(settings, folder=folder, config=config))

    def add(self, line: Mapping[str, Any]) -> None:
        """Mirror a line; lists become one number a prefix."""
        run = self._run
        if run is not None:
            self._attempt(lambda: run.log(flat(line), step=line["step"]))

    def close(self) -> None:
        run = self._run
        if run is not None:
            self._attempt(run.finish)

    def _attempt(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:
            self._run = None
            self._progress.note(f"Weights & Biases is off: {type(error).__name__}. metrics.jsonl has every figure.")
            return None


def _begin(settings: LogSettings, *, folder: Path, config: Mapping[str, Any]) -> Any:
    """Start a wandb run that records the figures and settings and nothing of the machine, the console or the key."""
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
    """One number a name: ``fvu_per_prefix: [a, b]`` becomes ``fvu_per_prefix/0: a`` and ``/1: b``."""
    found: dict[str, Any] = {}
    for name, value in line.items():
        values = {f"{name}/{number}": part for number, part in enumerate(value)} if isinstance(value, list) else {}
        found |= values or {name: value}
    return found
