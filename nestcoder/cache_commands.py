"""The ``cache`` commands: what each of them says, as JSON and as text that a person wants to read."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from nestcoder.stages import shown_progress

Said = tuple[Any, str]


def cache_verify(path: str, *, fast: bool) -> Said:
    """Check the cache. Raises DamagedError that names every fault."""
    from cache.verify import verify_cache

    with shown_progress() as progress:
        found = verify_cache(Path(path), fast=fast, progress=progress)
    found.require_whole()
    speed = found.bytes / max(found.seconds, 1e-9)
    checked = "sizes and metadata" if fast else "every byte"
    lines = [
        f"The cache is sound: {checked} of {found.files} files, {in_bytes(found.bytes)}.",
        f"{found.seconds:.1f} s, {in_bytes(speed)} a second." if not fast else "",
        "" if found.complete else f"It is not finished: {found.segments[0]} of {found.segments[1]} segments are there.",
        f"{len(found.leftovers)} files of an interrupted harvest are not counted." if found.leftovers else "",
    ]
    return asdict(found) | {"complete": found.complete}, "\n".join(line for line in lines if line)


def cache_repair(path: str) -> Said:
    """Set damaged shards aside and mark their rows for the next harvest."""
    from cache.repair import QUARANTINE, repair_cache

    with shown_progress() as progress:
        done = repair_cache(Path(path), progress=progress)
    if not done.faults:
        return asdict(done), "Nothing is damaged."
    lines = [f"{len(done.faults)} faults:", *(f"  {fault}" for fault in done.faults)]
    if done.quarantined:
        lines.append(f"{len(done.quarantined)} files were moved to {Path(path) / QUARANTINE}.")
    if done.rewritten:
        lines.append(f"Written again: {', '.join(done.rewritten)}.")
    segments = ", ".join(f"{group} {segment}" for group, segment in done.revoked)
    lines.append(f"To harvest again: {done.rows} rows (segments {segments})." if segments else "No rows were lost.")
    lines.append("Run the same harvest again: it redoes these and nothing else.")
    return asdict(done), "\n".join(lines)


def in_bytes(count: float) -> str:
    """A number of bytes for people: three digits and a unit of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"
