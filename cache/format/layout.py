"""Where every row lies: groups, segments, shards and chunks, their files, and the zarr metadata that describes them.

    rows.zarr/train/source/c.<shard>.0      shard_rows rows, then zarr's index: 16 bytes a chunk, crc32c
    rows.zarr/train/tokens/c.<segment>      segment_rows values
    rows.zarr/train/statistics/c.<segment>.0

A segment is what a writer commits at once: shards of rows and one file of each column. All of it but the sizes of
compressed files follows from ``Geometry``; no path is ever read from a file. FORMAT.md explains it.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from cache.format.codec import codec_json
from cache.format.statistics import statistics_width
from common.hashing import Bytes, crc32c

STORE = "rows.zarr"
GROUPS = ("train", "held_out")
ITEM_BYTES = {"int8": 1, "uint16": 2, "float16": 2, "float32": 4, "int32": 4, "int64": 8, "float64": 8}
STORED_AS = {"bfloat16": "uint16", "float16": "float16", "float32": "float32", "int8": "int8"}
BFLOAT16_NAN = 0x7FC0
_FILLS: dict[str, int | str] = {"int8": 0, "uint16": BFLOAT16_NAN, "int32": -1, "int64": -1}
_ABSENT = (1 << 64) - 1


@dataclass(frozen=True)
class Array:
    """One zarr array of a group: rows of ``width`` items (0: plain numbers), split into files of ``file_rows`` rows.

    A ``sharded`` file is chunks end to end, then zarr's index of them; any other is one chunk. Chunks are compressed by
    ``codec``, a name of ``cache.format.codec`` or ``none``. Sizes here are of what they hold, not compressed.
    """

    group: str
    name: str
    item: str
    width: int
    rows: int
    file_rows: int
    chunk_rows: int
    sharded: bool
    logical: str = ""
    codec: str = "none"

    @property
    def row_bytes(self) -> int:
        """Bytes of a row that is not compressed."""
        return max(1, self.width) * ITEM_BYTES[self.item]

    @property
    def is_per_segment(self) -> bool:
        """Whether the array has one line a segment, not one a row."""
        return self.name == "statistics" or self.name.endswith("_channel")

    @property
    def files(self) -> int:
        """How many files hold the array, the last one possibly shorter."""
        return -(-self.rows // self.file_rows)

    @property
    def path(self) -> str:
        """The array's folder, below the cache."""
        return f"{STORE}/{self.group}/{self.name}"

    def file_path(self, number: int) -> str:
        """File ``number`` of the array, below the cache."""
        return f"{self.path}/c.{number}" + (".0" if self.width else "")

    def chunks_in(self, number: int) -> int:
        """Chunks that file ``number`` holds; the last one may be padded with fill values."""
        rows = min(self.file_rows, self.rows - number * self.file_rows)
        return -(-rows // self.chunk_rows)

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a whole chunk that is not compressed."""
        return self.chunk_rows * self.row_bytes

    def file_bytes(self, number: int) -> int:
        """Bytes of file ``number`` when it is not compressed."""
        return self.chunks_in(number) * self.chunk_bytes + self.index_bytes

    @property
    def index_bytes(self) -> int:
        """Bytes of a file's index behind its chunks; 0 where a file is one chunk."""
        return 16 * self.index_entries + 4 if self.sharded else 0

    def index(self, sizes: Sequence[int]) -> bytes:
        """zarr's index behind chunks of these sizes: offset and bytes of each, all ones for an absent one, crc32c."""
        if not self.sharded:
            return b""
        ends = list(accumulate(sizes, initial=0))
        entries = [*zip(ends, sizes, strict=False), *[(_ABSENT, _ABSENT)] * (self.index_entries - len(sizes))]
        index = b"".join(struct.pack("<QQ", *entry) for entry in entries)
        return index + struct.pack("<I", crc32c(index))

    @property
    def index_entries(self) -> int:
        """Chunks that a file's index has a place for."""
        return self.file_rows // self.chunk_rows

    def zarr_json(self) -> bytes:
        """The array's zarr.json."""
        widths = [self.width] if self.width else []
        little: dict[str, object] = {"name": "bytes", "configuration": {"endian": "little"}}
        codecs = [little, *([codec_json(self.codec, ITEM_BYTES[self.item])] if self.codec != "none" else [])]
        shard: dict[str, object] = {
            "name": "sharding_indexed",
            "configuration": {
                "chunk_shape": [self.chunk_rows, *widths],
                "codecs": codecs,
                "index_codecs": [little, {"name": "crc32c"}],
                "index_location": "end",
            },
        }
        document: dict[str, object] = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [self.rows, *widths],
            "data_type": self.item,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [self.file_rows, *widths]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": _FILLS.get(self.item, "NaN"),
            "codecs": [shard] if self.sharded else codecs,
            "dimension_names": ["row", "dimension"][: 1 + len(widths)],
            "attributes": {"dtype": self.logical} if self.logical else {},
        }
        return zarr_document(document)


def zarr_document(document: dict[str, object]) -> bytes:
    """The bytes of a zarr.json, always the same for the same document."""
    return json.dumps(document, indent=1, sort_keys=True).encode()


def zarr_group(attributes: dict[str, object] | None = None) -> bytes:
    """The zarr.json of a group."""
    return zarr_document({"zarr_format": 3, "node_type": "group", "attributes": attributes or {}})


@dataclass(frozen=True)
class Group:
    """Rows that are served together: ``train`` (shuffled in segments) or ``held_out`` (in the order of the text)."""

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
        """Whether rows lie in a random order within their segments: training rows do."""
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
            for name, width in self.sides.items()
        ]
        columns = [self._column(name, item) for name, item in narrow.items()]
        statistics = self._line("statistics", "float64", statistics_width(self.d_source, self.d_target))
        arrays = [*rows, *columns, *(self._scales() if self.dtype == "int8" else []), statistics]
        return {array.name: array for array in arrays}

    @property
    def sides(self) -> dict[str, int]:
        """The widths of what is stored of source and target."""
        return {"source": self.d_source} | ({"target": self.d_target} if self.target == "stored" else {})

    def _scales(self) -> list[Array]:
        """What turns int8 back into numbers: a scale a row, and a scale a dimension for each segment."""
        return [
            array
            for side, width in self.sides.items()
            for array in (self._column(f"{side}_scale", "float32"), self._line(f"{side}_channel", "float32", width))
        ]

    def _column(self, name: str, item: str) -> Array:
        """One number a row, a file a segment."""
        rows = self.segment_rows
        return Array(self.name, name, item, 0, self.rows, rows, rows, False, codec=self.codec)

    def _line(self, name: str, item: str, width: int) -> Array:
        """One line a segment, a file each."""
        return Array(self.name, name, item, width, self.segments, 1, 1, False, codec=self.codec)

    def files_of(self, array: Array, segment: int) -> range:
        """Numbers of the files of ``array`` that hold ``segment``."""
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
    """What a cache's layout follows from. ``target`` is ``stored``, or ``recompute`` for rows that hold none."""

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
    parts: int

    @cached_property
    def groups(self) -> dict[str, Group]:
        """The arrays and segments of ``train`` and of ``held_out``."""
        wide = (self.dtype, self.codec, self.d_source, self.d_target, self.target)
        held_out = self.held_out_shard_rows
        return {
            "train": Group("train", self.train_rows, self.segment_rows, self.shard_rows, self.chunk_rows, *wide),
            "held_out": Group("held_out", self.held_out_rows, held_out, held_out, self.chunk_rows, *wide),
        }

    def part_segments(self, group: str, part: int) -> range:
        """The segments of a group that writer ``part`` of ``parts`` fills, in this order."""
        segments = self.groups[group].segments
        return range(segments * part // self.parts, segments * (part + 1) // self.parts)

    def part_rows(self, group: str, part: int) -> int:
        """Rows that writer ``part`` adds to a group."""
        own = self.part_segments(group, part)
        segment_rows = self.groups[group].segment_rows
        rows = self.groups[group].rows
        return min(rows, own.stop * segment_rows) - min(rows, own.start * segment_rows)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files of rows when the cache is whole, not compressed."""
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
    """Rows of a held-out shard: about as many as arrive while a segment of training rows does."""
    rows = chunk_rows
    while 2 * rows <= min(shard_rows, segment_rows * fraction):
        rows *= 2
    return rows


def padding(array: Array, rows: int) -> Bytes:
    """Fill values that make up the last chunk of ``rows`` rows."""
    missing = -rows % array.chunk_rows
    fills = {"uint16": struct.pack("<H", BFLOAT16_NAN), "float16": struct.pack("<H", 0x7E00)}
    fills |= {
        "int8": b"\0",
        "float32": struct.pack("<I", 0x7FC00000),
        "int32": b"\xff" * 4,
        "int64": b"\xff" * 8,
        "float64": b"",
    }
    return fills[array.item] * (missing * max(1, array.width))
