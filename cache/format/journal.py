"""The journal: which segments exist. A segment that it does not name does not exist, even if its files are there.

Each partition has one file. Each line is ``<xxh3-64 of the text> <JSON text>``. The first names the fingerprint and the
partition, the others are numbered and say what was committed (or revoked):

    {"n": 1, "commit": "train", "segment": 0, "from": POINT, "next": POINT,
     "files": [{path, size_bytes, xxh3, chunks, and of compressed ones sizes}]}
    {"n": 2, "revoke": "train", "segment": 0}

A POINT is where the caller's text must restart to give a row again. A last line without its newline was torn by a
crash and is ignored; any other line that cannot be read is damage.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cache.format.array import Array
from cache.format.codec import maximum_bytes
from cache.format.layout import Geometry
from common import disk
from common.errors import DamagedError, MismatchError, NestcoderError
from common.hashing import canonical_json, chunk_hash
from common.reading import parse_json, read_file

_LINE = re.compile(rb"([0-9a-f]{16}) (\{.*\})")
_HASH = re.compile(r"[0-9a-f]{32}")
_HASHES = re.compile(r"(?:[0-9a-f]{16})*")
# 1 GB is the journal of a cache of tens of TB. A larger file is not read into memory.
_LIMIT_BYTES = 1 << 30


@dataclass(frozen=True)
class FileEntry:
    """A committed file: path below the cache, size, xxh3-128 of the file, xxh3-64 of each chunk before compression.

    ``sizes`` are the bytes of its chunks if they are compressed.
    """

    path: str
    size_bytes: int
    xxh3: str
    chunks: str
    sizes: tuple[int, ...] = ()

    def chunk(self, number: int) -> str:
        """The checksum of a chunk of this file."""
        # 16 hexadecimal digits each, without separators.
        return self.chunks[16 * number : 16 * number + 16]

    def byte_range(self, number: int, chunk_bytes: int) -> tuple[int, int]:
        """The offset of a chunk in this file, and its bytes there; ``chunk_bytes`` are its bytes before compression."""
        if not self.sizes:
            return number * chunk_bytes, chunk_bytes
        return sum(self.sizes[:number]), self.sizes[number]

    def as_dict(self) -> dict[str, Any]:
        """As JSON, for the journal."""
        return {key: value for key, value in vars(self).items() if value != ()}


@dataclass(frozen=True)
class Point:
    """A position in the text: the caller's own cursor, and how many rows of each group came before it."""

    cursor: Any = None
    train: int = 0
    held_out: int = 0


@dataclass(frozen=True)
class Commit:
    """A segment that is on the disk."""

    group: str
    segment: int
    start: Point
    next: Point
    files: tuple[FileEntry, ...]


@dataclass
class Journal:
    """The contents of a partition's journal at ``path``. ``intact_bytes`` is its length without a torn last line."""

    path: Path
    commits: dict[tuple[str, int], Commit] = field(default_factory=dict)
    points: dict[tuple[str, int], Point] = field(default_factory=dict)
    lines: int = 0
    intact_bytes: int = 0

    def add(self, commit: Commit) -> None:
        """Commit a segment: it exists when this returns."""
        append(self.path, commit_line(self.lines, commit))
        self.lines += 1
        self.commits[commit.group, commit.segment] = commit


def journal_path(partition: int) -> str:
    """The path of the journal of ``partition``, below the cache."""
    return f"journal/part-{partition:05d}.jsonl"


def header(fingerprint: str, partition: int) -> dict[str, Any]:
    """The journal's first line."""
    return {"n": 0, "journal": 1, "fingerprint": fingerprint, "part": partition}


def commit_line(number: int, commit: Commit) -> dict[str, Any]:
    """The line that commits a segment."""
    return {
        "n": number,
        "commit": commit.group,
        "segment": commit.segment,
        "from": vars(commit.start),
        "next": vars(commit.next),
        "files": [entry.as_dict() for entry in commit.files],
    }


def revoke_line(number: int, group: str, segment: int) -> dict[str, Any]:
    """The line that revokes a segment: it must be written again."""
    return {"n": number, "revoke": group, "segment": segment}


def journal_line(line: dict[str, Any]) -> bytes:
    """The bytes of a line in a journal."""
    text = canonical_json(line)
    return chunk_hash(text).encode() + b" " + text + b"\n"


def read_line(line: bytes) -> dict[str, Any]:
    """The JSON of a line without its newline. Raises ValueError when it does not match its checksum."""
    parsed: Any = parse_json(line[17:]) if _is_sound(line) else None
    if not isinstance(parsed, dict):
        raise ValueError("a line that was torn, or never was one")
    return cast("dict[str, Any]", parsed)


def append(path: Path, line: dict[str, Any]) -> None:
    """Append a line; it is on the disk when this returns."""
    disk.append_line(path, journal_line(line))


def read_journal(path: Path, *, geometry: Geometry, fingerprint: str, partition: int) -> Journal:
    """The journal at ``path``; without a file it is empty.

    Raises DamagedError that names the line that cannot be read, MismatchError when it belongs to another cache.
    """
    data = read_file(path, limit_bytes=_LIMIT_BYTES)
    return parse_journal(data or b"", path, geometry=geometry, fingerprint=fingerprint, partition=partition)


def parse_journal(data: bytes, path: Path, *, geometry: Geometry, fingerprint: str, partition: int) -> Journal:
    """The journal in ``data``; ``path`` is where it comes from. Raises as ``read_journal``."""
    journal = Journal(path)
    *lines, torn = data.split(b"\n")
    if torn and not _is_torn(torn):
        raise _damaged(path, len(lines), "ends with a byte that is not a newline")
    for number, line in enumerate(lines):
        _apply(journal, _parse(line, path, number), path, geometry=geometry, header=header(fingerprint, partition))
        journal.intact_bytes += len(line) + 1
    return journal


def sound_lines(data: bytes, *, geometry: Geometry, fingerprint: str, partition: int) -> list[dict[str, Any]]:
    """The lines of a damaged journal that can be read and fit this cache, with a header, renumbered."""
    path = Path(journal_path(partition))
    first = header(fingerprint, partition)
    journal = Journal(path, lines=1)
    kept = [first]
    lines = data.split(b"\n")
    for line in [*lines, lines[-1][:-1]]:
        try:
            parsed = read_line(line)
            if "journal" in parsed and parsed != first:
                return [first]
            _apply(journal, parsed, path, geometry=geometry, header=first)
        except (ValueError, NestcoderError):
            continue
        kept.append(parsed | {"n": len(kept)})
    return kept


def _is_torn(tail: bytes) -> bool:
    """Whether a crash can have left this: a line without its end, or the zeros of a block that was never flushed.

    A complete line whose newline became another byte is damage.
    """
    return not _is_sound(tail[:-1]) or tail.endswith(b"\0")


def _is_sound(line: bytes) -> bool:
    match = _LINE.fullmatch(line)
    return bool(match) and chunk_hash(line[17:]).encode() == line[:16]


def _damaged(path: Path, number: int, how: str) -> DamagedError:
    what = f"Line {number + 1} of the journal {how}."
    return DamagedError(what, where=path, remedy="Run 'nestcoder cache repair' on the cache.")


def _parse(line: bytes, path: Path, number: int) -> dict[str, Any]:
    if not _is_sound(line):
        raise _damaged(path, number, "does not match its checksum")
    try:
        parsed: Any = parse_json(line[17:])
    except ValueError:
        raise _damaged(path, number, "is not JSON") from None
    if not isinstance(parsed, dict) or cast("dict[str, Any]", parsed).get("n") != number:
        raise _damaged(path, number, "has the wrong number")
    return cast("dict[str, Any]", parsed)


def _apply(journal: Journal, line: dict[str, Any], path: Path, *, geometry: Geometry, header: dict[str, Any]) -> None:
    number = journal.lines
    journal.lines += 1
    if number == 0:
        if line != header:
            what = f"The journal belongs to cache {line.get('fingerprint')}, partition {line.get('part')}."
            raise MismatchError(what, where=path)
        return
    try:
        if "revoke" in line:
            journal.commits.pop((line["revoke"], line["segment"]), None)
            return
        commit = _read_commit(line, geometry, header["part"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _damaged(path, number, "does not describe a segment of this cache") from None
    key = (commit.group, commit.segment)
    journal.commits[key] = commit
    journal.points[key] = commit.start
    journal.points.setdefault((commit.group, commit.segment + 1), commit.next)


def _read_commit(line: dict[str, Any], geometry: Geometry, partition: int) -> Commit:
    group = geometry.groups[line["commit"]]
    segment = line["segment"]
    if type(segment) is not int or segment not in geometry.partition_segments(group.name, partition):
        raise ValueError(segment)
    entries = tuple(
        _read_entry(entry, array, file)
        for (array, file), entry in zip(group.segment_files(segment), line["files"], strict=True)
    )
    return Commit(group.name, segment, read_point(line["from"]), read_point(line["next"]), entries)


def _read_entry(value: dict[str, Any], array: Array, file: int) -> FileEntry:
    fields: dict[str, Any] = {**value, "sizes": tuple(value.get("sizes", ()))}
    entry = FileEntry(**fields)
    count = array.chunks_in(file)
    compressed = array.codec != "none"
    sizes = entry.sizes if compressed else (array.chunk_bytes,) * count
    limit = maximum_bytes(array.chunk_bytes)
    if len(sizes) != count or not all(type(size) is int and 0 < size <= limit for size in sizes):
        raise ValueError(entry.path)
    found = (entry.path, entry.size_bytes, len(entry.chunks), bool(entry.sizes))
    if found != (array.file_path(file), sum(sizes) + array.index_bytes, 16 * count, compressed):
        raise ValueError(entry.path)
    if not _HASH.fullmatch(entry.xxh3) or not _HASHES.fullmatch(entry.chunks):
        raise ValueError(entry.path)
    return entry


def read_point(value: dict[str, Any]) -> Point:
    """The point in a line. Raises ValueError, KeyError or TypeError for anything else."""
    for group in ("train", "held_out"):
        if type(value[group]) is not int or value[group] < 0:
            raise ValueError(group)
    return Point(value["cursor"], value["train"], value["held_out"])
