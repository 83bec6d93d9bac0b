"""One zarr array of the rows: the files that it is split into, their bytes and index, its zarr.json."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from cache.format.codec import codec_json
from common.hashing import Bytes, crc32c

STORE = "rows.zarr"
# By zarr's names of data types.
ITEM_BYTES = {"int8": 1, "uint16": 2, "float16": 2, "float32": 4, "int32": 4, "int64": 8, "float64": 8}
BFLOAT16_NAN = 0x7FC0
"""The bits of a bfloat16 NaN: zarr has no bfloat16, so its bits are stored as uint16."""
_FILLS: dict[str, int | str] = {"int8": 0, "uint16": BFLOAT16_NAN, "int32": -1, "int64": -1}
"""What an absent row reads as, as zarr.json states it. Floats have NaN; ids and positions have -1, which no row has."""
_ABSENT = (1 << 64) - 1
"""zarr's mark of a chunk that a shard does not have."""


@dataclass(frozen=True)
class Array:
    """One zarr array of a group: rows of ``width`` items (0: plain numbers), split into files of ``file_rows`` rows.

    A ``sharded`` file is chunks end to end, then zarr's index of them; any other is one chunk. Chunks are compressed by
    ``codec``, a name of ``cache.format.codec`` or ``none``. Sizes are before compression.
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
        """Whether the array has one entry for a segment, not one for a row."""
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
        """Bytes of a full chunk that is not compressed."""
        return self.chunk_rows * self.row_bytes

    def file_bytes(self, number: int) -> int:
        """Bytes of file ``number`` when it is not compressed."""
        return self.chunks_in(number) * self.chunk_bytes + self.index_bytes

    @property
    def index_bytes(self) -> int:
        """Bytes of a file's index after its chunks; 0 if a file is one chunk."""
        # An offset and a size of 8 bytes each for every chunk, then a checksum of 4 bytes.
        return 16 * self.index_entries + 4 if self.sharded else 0

    def index(self, sizes: Sequence[int]) -> bytes:
        """zarr's index of chunks of these sizes: offset and bytes of each, all ones for an absent chunk, crc32c."""
        if not self.sharded:
            return b""
        ends = list(accumulate(sizes, initial=0))
        entries = [*zip(ends, sizes, strict=False), *[(_ABSENT, _ABSENT)] * (self.index_entries - len(sizes))]
        index = b"".join(struct.pack("<QQ", *entry) for entry in entries)
        return index + struct.pack("<I", crc32c(index))

    @property
    def index_entries(self) -> int:
        """Chunks that a file's index has entries for."""
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


def padding(array: Array, rows: int) -> Bytes:
    """Fill values that make up the last chunk of ``rows`` rows."""
    missing = -rows % array.chunk_rows
    # The bits of NaN in every float type, and of 0 or -1 in the integers (``_FILLS``).
    fills = {"uint16": struct.pack("<H", BFLOAT16_NAN), "float16": struct.pack("<H", 0x7E00)}
    fills |= {
        "int8": b"\0",
        "float32": struct.pack("<I", 0x7FC00000),
        "int32": b"\xff" * 4,
        "int64": b"\xff" * 8,
        "float64": b"",
    }
    return fills[array.item] * (missing * max(1, array.width))
