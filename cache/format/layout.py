"""Where every row is stored: groups, segments, shards and chunks, their files, and the zarr metadata for them.

    rows.zarr/train/source/c.<shard>.0      shard_rows rows, then zarr's index: 16 bytes for each chunk, crc32c
    rows.zarr/train/tokens/c.<segment>      segment_rows values
    rows.zarr/train/statistics/c.<segment>.0

A segment is what a writer commits at once: shards of rows and one file of each column. Everything except the sizes of
compressed files follows from ``Geometry``; no path is ever read from a file. FORMAT.md explains it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from cache.format.array import STORE, Array, zarr_group
from cache.format.statistics import statistics_width

GROUPS = ("train", "held_out")
ActivationName = Literal["source", "target"]
"""A column of activations: what the MLP read, and what it gave."""
STORED_AS = {"bfloat16": "uint16", "float16": "float16", "float32": "float32", "int8": "int8"}


@dataclass(frozen=True)
class Group:
    """The rows of one split: ``train`` (shuffled within segments) or ``held_out`` (in the order of the text)."""

    name: str
    rows: int
    segment_rows: int
    shard_rows: int
    chunk_rows: int
    dtype: str
    codec: str
    d_source: int
    d_target: int
    target: str

    @property
    def shuffled(self) -> bool:
        """Whether rows are in a random order within their segments: training rows are."""
        return self.name == "train"

    @property
    def segments(self) -> int:
        """How many segments hold the rows."""
        return -(-self.rows // self.segment_rows)

    def rows_in(self, segment: int) -> int:
        """Rows of a segment; the last one may have fewer."""
        return min(self.segment_rows, self.rows - segment * self.segment_rows)

    @cached_property
    def arrays(self) -> dict[str, Array]:
        """The group's arrays by name, as they are written."""
        item = STORED_AS[self.dtype]
        narrow = {"tokens": "int32", "document": "int64", "position": "int32"}
        rows = [
            Array(
                self.name, name, item, width, self.rows, self.shard_rows, self.chunk_rows, True, self.dtype, self.codec
            )
            for name, width in self.activation_widths.items()
        ]
        columns = [self._column(name, item) for name, item in narrow.items()]
        statistics = self._line("statistics", "float64", statistics_width(self.d_source, self.d_target))
        arrays = [*rows, *columns, *(self._scales() if self.dtype == "int8" else []), statistics]
        return {array.name: array for array in arrays}

    @property
    def activation_widths(self) -> dict[str, int]:
        """The widths of the stored activations, by name: source, and target unless it is recomputed."""
        return {"source": self.d_source} | ({"target": self.d_target} if self.target == "stored" else {})

    def _scales(self) -> list[Array]:
        """What turns int8 back into numbers: one scale for each row, and one for each dimension of a segment."""
        return [
            array
            for name, width in self.activation_widths.items()
            for array in (self._column(f"{name}_scale", "float32"), self._line(f"{name}_channel", "float32", width))
        ]

    def _column(self, name: str, item: str) -> Array:
        """One number for each row, one file for each segment."""
        rows = self.segment_rows
        return Array(self.name, name, item, 0, self.rows, rows, rows, False, codec=self.codec)

    def _line(self, name: str, item: str, width: int) -> Array:
        """One vector for each segment, in a file of its own."""
        return Array(self.name, name, item, width, self.segments, 1, 1, False, codec=self.codec)

    def files_of(self, array: Array, segment: int) -> range:
        """The numbers of the files of ``array`` that have rows of ``segment``."""
        if array.is_per_segment:
            return range(segment, segment + 1)
        first = segment * self.segment_rows // array.file_rows
        last = segment * self.segment_rows + self.rows_in(segment) - 1
        return range(first, last // array.file_rows + 1)

    def segment_bytes(self, segment: int) -> int:
        """Bytes of a segment's files, not compressed."""
        full = self.rows_in(segment) == self.segment_rows
        return self._full_segment_bytes if full else self._files_bytes(segment)

    @cached_property
    def _full_segment_bytes(self) -> int:
        return self._files_bytes(0)

    def _files_bytes(self, segment: int) -> int:
        return sum(array.file_bytes(number) for array, number in self.segment_files(segment))

    def segment_files(self, segment: int) -> list[tuple[Array, int]]:
        """Every file of a segment, in the order in which the journal lists them."""
        return [(array, number) for array in self.arrays.values() for number in self.files_of(array, segment)]


@dataclass(frozen=True)
class Geometry:
    """The sizes that determine a cache's layout. ``target`` is ``stored``, or ``recompute`` if no target is stored."""

    dtype: str
    codec: str
    d_source: int
    d_target: int
    target: str
    train_rows: int
    held_out_rows: int
    chunk_rows: int
    shard_rows: int
    segment_rows: int
    held_out_shard_rows: int
    partitions: int

    @cached_property
    def groups(self) -> dict[str, Group]:
        """The arrays and segments of ``train`` and of ``held_out``."""
        wide = (self.dtype, self.codec, self.d_source, self.d_target, self.target)
        held_out = self.held_out_shard_rows
        return {
            "train": Group("train", self.train_rows, self.segment_rows, self.shard_rows, self.chunk_rows, *wide),
            "held_out": Group("held_out", self.held_out_rows, held_out, held_out, self.chunk_rows, *wide),
        }

    def partition_segments(self, group: str, partition: int) -> range:
        """The segments of a group that writer ``partition`` of ``partitions`` fills, in this order."""
        segments = self.groups[group].segments
        return range(segments * partition // self.partitions, segments * (partition + 1) // self.partitions)

    def partition_rows(self, group: str, partition: int) -> int:
        """Rows that writer ``partition`` adds to a group."""
        own = self.partition_segments(group, partition)
        segment_rows = self.groups[group].segment_rows
        rows = self.groups[group].rows
        return min(rows, own.stop * segment_rows) - min(rows, own.start * segment_rows)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of rows of the complete cache, not compressed."""
        groups = self.groups.values()
        return sum(group.segment_bytes(segment) for group in groups for segment in range(group.segments))

    def zarr_files(self) -> dict[str, bytes]:
        """Every zarr.json of the rows, by path."""
        files = {f"{STORE}/zarr.json": zarr_group(), f"{STORE}/parameters/zarr.json": zarr_group()}
        for name, group in self.groups.items():
            files[f"{STORE}/{name}/zarr.json"] = zarr_group()
            files |= {f"{array.path}/zarr.json": array.zarr_json() for array in group.arrays.values()}
        return files


def held_out_shard_rows(*, chunk_rows: int, shard_rows: int, segment_rows: int, fraction: float) -> int:
    """Rows of a held-out shard: about as many as arrive while one training segment fills."""
    rows = chunk_rows
    while 2 * rows <= min(shard_rows, segment_rows * fraction):
        rows *= 2
    return rows
