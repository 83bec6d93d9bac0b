"""What an export is: files by their path within a folder, each in pieces; and the folder, which appears whole."""

import gzip
import json
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

from common import disk
from common.errors import UsageError

Files = Generator[tuple[str, Iterable[bytes]]]
"""Paths with forward slashes, and contents. A file's pieces are used up before the next file is asked for."""

# gzip's own default.
_LEVEL = 6


def write_folder(folder: Path, files: Files) -> None:
    """Write all files under another name, then rename: ``folder`` is whole, or is not there. Raises UsageError."""
    if folder.exists():
        raise UsageError("This exists already.", where=folder, remedy="Name a new folder, or remove this one.")
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    disk.remove(unfinished)
    disk.write_files(((unfinished / path, pieces) for path, pieces in files), tag="0")
    disk.move(unfinished, folder)


def as_line(value: Any) -> bytes:
    """JSON on one line; NaN and infinity are refused."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def packed(data: bytes) -> bytes:
    """Compressed with gzip, without a time, so that the same evidence gives the same bytes."""
    return gzip.compress(data, compresslevel=_LEVEL, mtime=0)
