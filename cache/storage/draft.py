"""A draft: the rows of a segment that is not full yet, in a file, so that a kill does not lose all of them.

    drafts/part-00000.train.3

First a line that says which rows these are, then blocks: a line and then the rows that it counts, in the order of the
text, one column after another. The lines are like those of a journal (checksum, JSON, newline):

    {"draft": 1, "fingerprint", "part", "group", "segment", "columns": [[name, type, width ...] ...]}
    {"first", "rows", "xxh3", "point"}

After a block with a ``point`` the text can go on from that point; a block without one is followed by more rows. A block
that a crash tore does not match its checksum: it and all later blocks are ignored, earlier ones are used. So a power
cut does no harm, and the committed files never depend on a draft: they are made from rows in memory.
"""

from collections.abc import Collection, Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from cache.format.journal import Point, journal_line, read_line, read_point
from cache.storage.segment import Column, SegmentBuffer
from common import disk
from common.errors import DiskError
from common.hashing import Bytes

DRAFTS = "drafts"
"""The folder of drafts in a cache."""
_BLOCK_ROWS = 4096
"""Rows of a block, which are in memory in addition to the segment while a draft is written or read."""
_LINE_BYTES = 1 << 24
"""No line is longer: a point contains the tokens of one unfinished context, which are few."""


def draft_path(cache: Path, partition: int, group: str, segment: int) -> Path:
    """The path of the draft of a segment."""
    return cache / DRAFTS / f"part-{partition:05d}.{group}.{segment}"


def remove_drafts(cache: Path, partition: int, *, keep: Collection[Path] = ()) -> None:
    """Remove a partition's drafts except ``keep``. If the disk refuses, they stay; they do no harm."""
    for path in sorted((cache / DRAFTS).glob(f"part-{partition:05d}.*")):
        if path not in keep:
            with suppress(DiskError):
                disk.remove(path)


class Draft:
    """The draft at ``path`` of the segment in ``buffer``; ``whose`` (JSON) says which segment of which cache it is."""

    def __init__(self, path: Path, buffer: SegmentBuffer, whose: dict[str, Any], *, tag: str) -> None:
        self.path = path
        self.rows = 0
        self.point: Point | None = None
        """Where the text goes on after ``rows``; None while there are none."""
        self._buffer = buffer
        columns = [[name, column.dtype.str, *column.shape[1:]] for name, column in buffer.no_rows.items()]
        self._header = journal_line({"draft": 1, **whose, "columns": columns})
        self._tag = tag

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in all columns."""
        return sum(column.dtype.itemsize * int(np.prod(column.shape[1:])) for column in self._buffer.no_rows.values())

    def add(self, rows: int, point: Point) -> None:
        """Save the segment's rows up to ``rows``, and where the text goes on; all is on the disk when this returns.

        Raises DiskError; then the draft must be removed.
        """
        if self.point is None:
            disk.write_file(self.path, self._header, tag=self._tag)
        disk.append(self.path, self._blocks(rows, point))
        self.rows = rows
        self.point = point

    def _blocks(self, rows: int, point: Point) -> Iterator[Bytes]:
        # At least one block: a point without new rows says that the text went on without rows of this group.
        for first in range(self.rows, max(rows, self.rows + 1), _BLOCK_ROWS):
            count = min(_BLOCK_ROWS, rows - first)
            columns = _bytes_of(self._buffer.take(first, count)) if count else []
            end = vars(point) if first + count == rows else None
            yield journal_line({"first": first, "rows": count, "xxh3": _hash(columns), "point": end})
            yield from columns

    def restore(self, segment: int) -> None:
        """Fill the buffer with the rows of an earlier writer, and cut off a torn end.

        A draft that is missing, of other rows or torn from its beginning restores nothing. Raises DiskError.
        """
        if not self.path.is_file() or self.path.is_symlink():
            return
        with self.path.open("rb") as file:
            if file.readline(_LINE_BYTES) != self._header:
                return
            end = file.tell()
            first = 0
            most = self._buffer.group.rows_in(segment)
            while (found := self._read_block(file, first, most=most)) is not None:
                block, point = found
                self._buffer.give_back(segment, first, block)
                first += len(block["tokens"])
                if point:
                    self.rows = first
                    self.point = point
                    end = file.tell()
        if self.point and end < self.path.stat().st_size:
            disk.truncate(self.path, end)

    def _read_block(
        self, file: BufferedReader, first: int, *, most: int
    ) -> tuple[dict[str, Column], Point | None] | None:
        """The block that begins with row ``first``; None at the end, or if the block is torn."""
        try:
            line = read_line(file.readline(_LINE_BYTES).removesuffix(b"\n"))
            rows = line["rows"]
            if line["first"] != first or type(rows) is not int or not 0 <= rows <= min(_BLOCK_ROWS, most - first):
                return None
            block = {name: _read_column(file, column, rows) for name, column in self._buffer.no_rows.items()}
            if _hash(_bytes_of(block) if rows else []) != line["xxh3"]:
                return None
            return block, read_point(line["point"]) if line["point"] else None
        except (KeyError, TypeError, ValueError):
            return None

    def remove(self) -> None:
        """Remove the file, if there is one."""
        disk.remove(self.path)
        self.rows = 0
        self.point = None


def _read_column(file: BufferedReader, column: np.ndarray, rows: int) -> np.ndarray:
    values = np.empty((rows, *column.shape[1:]), column.dtype)
    if rows and file.readinto(values.data.cast("B")) != values.nbytes:
        raise ValueError("the file ends within a block")
    return values


def _bytes_of(block: dict[str, Column]) -> list[memoryview]:
    return [np.ascontiguousarray(column).data.cast("B") for column in block.values()]


def _hash(columns: list[memoryview]) -> str:
    found = xxhash.xxh3_128()
    for column in columns:
        found.update(column)
    return found.hexdigest()
