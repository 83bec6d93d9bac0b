"""``nestcoder verify``: whether all files of a run are undamaged: caches, probes, transcoders with their checkpoints
and logs, features, reports.

Below each path the folders are found by files that only such a folder has (``common/run_layout.py``), and each is
checked by the package that wrote it. Reports of earlier versions have no checksums: they are listed, not checked.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import DamagedError, NestcoderError, UsageError
from common.progress import Progress
from common.run_layout import (
    CHECKPOINTS,
    CONFIG_FILE,
    LOG_FILE,
    METRICS_FILE,
    PROBE_FILE,
    PROBE_WEIGHTS_FILE,
    WEIGHTS_FILE,
)
from common.sealed.checksums import CHECKSUMS_FILE, faults_of
from nestcoder.invocation import CommandResult
from nestcoder.progress import shown_progress
from nestcoder.text import table

_SHOWN = 20
"""Faults of one folder that a message lists: enough to see the pattern."""


@dataclass(frozen=True)
class Checked:
    """A folder of a stage and its faults, one sentence each. ``note`` says what was not checked."""

    kind: str
    path: str
    faults: tuple[str, ...]
    note: str = ""

    @property
    def state(self) -> str:
        """The number of faults; if there are none, the note or ``sound``."""
        count = len(self.faults)
        return f"{count} fault{'s' if count > 1 else ''}" if count else self.note or "sound"


def verify(paths: Sequence[str], *, fast: bool) -> tuple[CommandResult, DamagedError | None]:
    """Check everything below ``paths`` (folders, or URLs of caches): the result, and an error that names the damage.

    ``fast`` compares the sizes of a cache's shards, not their bytes. Raises UsageError for a path that does not exist
    or has nothing to check.
    """
    checked: list[Checked] = []
    with shown_progress() as progress:
        for path in paths:
            checked += _check_below(path, fast=fast, progress=progress)
    rows = [(item.kind, item.path, item.state) for item in checked]
    result = CommandResult([asdict(item) for item in checked], "\n".join(table(("kind", "folder", ""), rows)))
    return result, _damage([item for item in checked if item.faults])


def _damage(damaged: list[Checked]) -> DamagedError | None:
    if not damaged:
        return None
    lines: list[str] = []
    for item in damaged:
        lines.append(f"{item.kind} {item.path}")
        lines += [f"  {fault}" for fault in item.faults[:_SHOWN]]
        if len(item.faults) > _SHOWN:
            lines.append(f"  and {len(item.faults) - _SHOWN} more")
    remedies = [_REMEDIES[kind] for kind in dict.fromkeys(item.kind for item in damaged)]
    count = f"{len(damaged)} folders are" if len(damaged) > 1 else "1 folder is"
    return DamagedError(f"{count} damaged.", where="\n".join(lines), remedy="\n".join(remedies))


_REMEDIES = {
    "cache": "A cache: run 'nestcoder cache repair' on it, then the same harvest again.",
    "probe": "A probe: run 'nestcoder harvest --probe first-letter' for its layer again.",
    "transcoder": "A transcoder: train it again (--fresh), or copy the file from a backup.",
    "features": "Feature evidence: run 'nestcoder features' again.",
    "report": "A report: run 'nestcoder evaluate' again.",
}


def _check_below(path: str, *, fast: bool, progress: Progress) -> list[Checked]:
    if "://" in path:
        from cache.tools.verify_remote import verify_remote

        found = verify_remote(path, progress=progress)
        return [Checked("cache", path, tuple(map(str, found.faults)))]
    folder = Path(path)
    if not folder.is_dir():
        raise UsageError("There is no such folder.", where=path)
    checked = [_check(kind, found, fast=fast, progress=progress) for kind, found in _artefacts(folder)]
    if not checked:
        what = "There is no cache, probe, transcoder or report in this folder."
        raise UsageError(what, where=path, remedy="Name a folder of runs/, or all of it.")
    return checked


def _artefacts(top: Path) -> Iterator[tuple[str, Path]]:
    """(kind, folder) of all folders of stages in ``top`` or below, in order of their paths."""

    def unreadable(error: OSError) -> None:
        raise DamagedError(f"The folder cannot be read: {error.strerror}.", where=error.filename)

    for name, folders, files in os.walk(top, onerror=unreadable):
        present = {*folders, *files}
        kind = next((kind for kind, signs in _SIGNS.items() if signs & present), None)
        if kind:
            yield kind, Path(name)
        folders[:] = [] if kind else sorted(folders)


_SIGNS = {
    "cache": {"manifest.json", "rows.zarr", "journal"},
    "probe": {PROBE_FILE, PROBE_WEIGHTS_FILE},
    "report": {METRICS_FILE, CHECKSUMS_FILE},
    "features": {"evidence.json", "evidence.safetensors"},
    "transcoder": {CONFIG_FILE, WEIGHTS_FILE, LOG_FILE, CHECKPOINTS},
}
"""Files and folders that only a folder of that kind has. One of them is enough, because the others may be lost."""


def _check(kind: str, folder: Path, *, fast: bool, progress: Progress) -> Checked:
    if kind == "report" and not (folder / CHECKSUMS_FILE).exists():
        return Checked(kind, str(folder), (), note="not checked: written before reports had checksums")
    return Checked(kind, str(folder), tuple(_faults(kind, folder, fast=fast, progress=progress)))


def _faults(kind: str, folder: Path, *, fast: bool, progress: Progress) -> list[str]:
    try:
        if kind == "cache":
            from cache.tools.verify import verify_cache

            return [str(fault) for fault in verify_cache(folder, fast=fast, progress=progress).faults]
        return _CHECKS[kind](folder)
    except NestcoderError as error:
        return [" ".join(line for line in (error.what, error.where) if line)]
    except OSError as error:
        return [f"{error.filename or folder}: unreadable, {os.strerror(error.errno or 0)}"]


def _probe_faults(folder: Path) -> list[str]:
    from evaluate.absorption.probe_set import read_probe_set

    read_probe_set(folder)
    return []


def _features_faults(folder: Path) -> list[str]:
    from evaluate.features.evidence import read_evidence

    read_evidence(folder)
    return []


def _transcoder_faults(folder: Path) -> list[str]:
    from train.record.verify import verify_run

    return verify_run(folder)


_CHECKS: dict[str, Callable[[Path], list[str]]] = {
    "probe": _probe_faults,
    "transcoder": _transcoder_faults,
    "report": faults_of,
    "features": _features_faults,
}
