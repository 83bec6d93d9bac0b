"""The index of a run's checkpoints: a file that it does not name is ignored.

A header line with the hash of the other lines, then a line a checkpoint, newest last, each with its own hash: a damaged
line is noticed, and the others can still be used.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from common.errors import MismatchError
from common.sealed.tensors import FileSeal

FORMAT_VERSION = 1
"""Of all files of a checkpoint."""
INDEX_FILE = "index.json"


@dataclass(frozen=True)
class Entry:
    """A line of the index: seals of the checkpoint's two files, and of the log at that time.

    ``held_out_fvu`` is None for a checkpoint that was not measured. In an entry of an earlier release the log's hash
    is empty.
    """

    step: int
    arrays: FileSeal
    facts: FileSeal
    log: FileSeal
    held_out_fvu: float | None


@dataclass(frozen=True)
class Index:
    """The undamaged entries, oldest first; ``is_intact`` is False if there may have been others."""

    entries: list[Entry]
    is_intact: bool


def read_index(folder: Path) -> Index:
    """The index of a folder of checkpoints, empty if there is none. Raises MismatchError for another version."""
    path = folder / INDEX_FILE
    if not path.is_file():
        return Index([], is_intact=True)
    head, _, body = path.read_bytes().partition(b"\n")
    version = _parsed(head).get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise MismatchError(f"Checkpoints of format version {version!r} are unknown to this release.", where=path)
    entries = [_entry(line, path=path) for line in map(_unsealed, body.splitlines()) if line]
    return Index(entries, is_intact=head == _header(body))


def index_text(entries: list[Entry]) -> bytes:
    """The index's bytes."""
    lines = [
        {
            "step": entry.step,
            "arrays": entry.arrays.as_dict(),
            "facts": entry.facts.as_dict(),
            "log_bytes": entry.log.size,
            "log_xxh3_128": entry.log.hash,
            "held_out_fvu": entry.held_out_fvu,
        }
        for entry in entries
    ]
    body = b"".join(_sealed(line) + b"\n" for line in lines)
    return _header(body) + b"\n" + body


def _header(body: bytes) -> bytes:
    return json.dumps({"format_version": FORMAT_VERSION, "xxh3_128": xxhash.xxh3_128_hexdigest(body)}).encode()


def _sealed(line: Mapping[str, Any]) -> bytes:
    """A line of the index with its own hash."""
    return json.dumps({**line, "xxh3_128": _hash_of(line)}).encode()


def _unsealed(text: bytes) -> dict[str, Any]:
    """The line without its hash; empty if the line was changed."""
    line = _parsed(text)
    seal = line.pop("xxh3_128", None)
    return line if seal == _hash_of(line) else {}


def _hash_of(line: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(line).encode())


def _parsed(text: bytes) -> dict[str, Any]:
    """A JSON object; empty for anything else."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _entry(line: Mapping[str, Any], *, path: Path) -> Entry:
    return Entry(
        step=line["step"],
        arrays=FileSeal.parse(line["arrays"], location=path),
        facts=FileSeal.parse(line["facts"], location=path),
        log=FileSeal(line["log_bytes"], line.get("log_xxh3_128", "")),
        held_out_fvu=line["held_out_fvu"],
    )
