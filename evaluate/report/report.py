"""What an evaluation leaves behind: a folder that appears complete or not at all.

It holds metrics.json (docs/metrics.md is its contract), summary.txt, samples.json, samples.txt, plots as PNG and SVG,
and with a comparison what ``evaluate.compare`` adds. Every evaluation writes into a folder of its own first and renames
it, so two that end at the same time both publish whole reports. The report that was there before is moved to a folder
that bears its date, never overwritten; whatever is wrong with it cannot fail a new one.
"""

import errno
import json
import os
import re
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import disk
from common.errors import DiskError
from common.run_layout import METRICS_FILE
from common.sealed.checksums import CHECKSUMS_FILE, checksums_of

VERSION = 1
"""Of metrics.json."""

_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(\+00:00|Z)")
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR}
"""What a rename says where another evaluation published or moved a report at the same moment."""
_TRIES = 100
"""Renames, each of which another evaluation may win."""
_ABANDONED_SECONDS = 3600
"""A report is written in seconds: an unfinished folder this old is what a killed evaluation left."""


def as_json(document: Mapping[str, Any]) -> bytes:
    """Plain JSON; raises ValueError for NaN and infinity, which JSON does not have."""
    return json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"


def write_report(out: Path, files: Mapping[str, bytes]) -> Path | None:
    """Put ``files`` into the folder ``out``; returns where an earlier report was moved to, if there was one."""
    _remove_abandoned(out)
    unfinished = out.with_name(f".{out.name}.{socket.gethostname()}-{os.getpid()}.unfinished")
    disk.remove(unfinished)
    for name, data in (*files.items(), (CHECKSUMS_FILE, checksums_of(files))):
        disk.write_file(unfinished / name, data)
    try:
        return _publish(unfinished, out)
    except DiskError:
        disk.remove(unfinished)
        raise


def _publish(unfinished: Path, out: Path) -> Path | None:
    """Move an earlier report away, then rename the new folder; try again if another evaluation did so in between."""
    earlier: Path | None = None
    for attempt in range(_TRIES):
        try:
            dated = _dated(out)
            if dated:
                disk.move(out, dated)
                earlier = dated
            disk.move(unfinished, out)
            return earlier
        except DiskError as error:
            cause = error.__cause__
            if not (isinstance(cause, OSError) and cause.errno in _TAKEN) or attempt == _TRIES - 1:
                raise
    return earlier


def _remove_abandoned(out: Path) -> None:
    for folder in out.parent.glob(f".{out.name}.*unfinished"):
        found = disk.state(folder)
        if found and time.time() - found.st_mtime > _ABANDONED_SECONDS:
            disk.remove(folder)


def _dated(out: Path) -> Path | None:
    """A free name for an old report: its own name with its date, or with that of its folder if metrics.json has none.
    None if there is no report, or another evaluation has just moved it."""
    found = disk.state(out)
    if found is None:
        return None
    metrics, _ = read_earlier(out)
    date = str(metrics.get("evaluated_at"))
    if not _DATE.fullmatch(date):
        date = datetime.fromtimestamp(found.st_mtime, UTC).isoformat(timespec="seconds")
    stamp = date.replace(":", "").replace("+0000", "Z")
    count = 1
    name = out.with_name(f"{out.name}.{stamp}")
    while name.exists():
        count += 1
        name = out.with_name(f"{out.name}.{stamp}.{count}")
    return name


def read_earlier(out: Path) -> tuple[dict[str, Any], str | None]:
    """metrics.json of the report in ``out``, and its problem; None if it has none, or there is no report."""
    path = out / METRICS_FILE
    if not out.exists():
        return {}, None
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, "it has no metrics.json"
    except OSError as error:
        return {}, f"its metrics.json cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        return {}, "its metrics.json is not JSON"
    if not isinstance(found, dict):
        return {}, "its metrics.json is no JSON object"
    return found, None
