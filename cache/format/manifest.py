"""The manifest: everything that determines a cache's bytes, written once, and the fingerprint of all of it.

    fingerprint = xxh3-128 of the canonical JSON of
                  {version, identity less "proof", format less "codec", special_ids, parameters}

The fingerprint identifies the rows, whatever codec compresses them. ``identity`` is the harvest's own plain JSON:
model, revision, weight hash, tokenizer, sites, text. ``parameters`` are small arrays that belong to the rows (a norm's
gain and bias), stored as zarr arrays too; the unembedding is stored with them but does not count. A manifest is never
trusted: every number is checked, and no path in it is ever followed.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Int

from cache.config import CacheSettings
from cache.format.array import ITEM_BYTES, STORE
from cache.format.layout import STORED_AS, Geometry, held_out_shard_rows
from cache.format.parameters import PARAMETERS, UNEMBEDDING
from common.errors import DamagedError, MismatchError, UsageError
from common.hashing import canonical_json, hash_bytes
from common.reading import parse_json, read_file

VERSION = 2
"""Of the format in FORMAT.md. Another version is refused."""
MANIFEST = "manifest.json"
# A manifest could state sizes that fill the memory of whoever opens the cache. These limits are far above real caches:
# 64 MB of JSON, 2^48 rows, a width of 16 million, 4 million files, 134 million chunks.
_LIMIT_BYTES = 64 << 20
_GEOMETRY_LIMIT = 1 << 48
_WIDTH_LIMIT = 1 << 24
# Every partition has a journal, and all of them are read when the cache is opened: 65,536 of them took 38 seconds.
_PARTITIONS_LIMIT = 4096
_FILES_LIMIT = 1 << 22
_CHUNKS_LIMIT = 1 << 27
_REPAIR = "Run 'nestcoder cache repair' on the cache."


@dataclass(frozen=True)
class Manifest:
    """What a cache is. ``files`` lists every file that is written before the first row: (bytes, xxh3-128) by path."""

    identity: dict[str, Any]
    geometry: Geometry
    shuffle_seed: int
    held_out_fraction: float
    split_seed: int
    special_ids: tuple[int, ...]
    files: dict[str, tuple[int, str]]
    written_with: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits. Two caches have the same only if everything that determines their rows is the same."""
        return hash_bytes(canonical_json(self.determining()))

    def is_ordinary(self, tokens: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
        """Which of these tokens are not special: rows of the others are not trained on, measured or counted."""
        return ~np.isin(tokens, self.special_ids)

    def determining(self) -> dict[str, Any]:
        """Everything that determines the rows, as plain JSON."""
        return {
            "version": VERSION,
            "identity": {key: value for key, value in self.identity.items() if key != "proof"},
            "format": {key: value for key, value in self.format().items() if key != "codec"},
            "special_ids": list(self.special_ids),
            "parameters": {path: file for path, file in self._bound().items() if _determines(path)},
        }

    def format(self) -> dict[str, Any]:
        """What the cache's own settings and sizes determine, by the names that manifest.json has."""
        seeds = {key: getattr(self, key) for key in ("shuffle_seed", "held_out_fraction", "split_seed")}
        sizes = asdict(self.geometry)
        sizes["parts"] = sizes.pop("partitions")
        return sizes | seeds

    def to_json(self) -> bytes:
        """The bytes of manifest.json; its last field is a checksum over the others."""
        document = {
            "format_name": "nestcoder cache",
            "version": VERSION,
            "identity": self.identity,
            "format": self.format(),
            "special_ids": list(self.special_ids),
            "files": self._bound(),
            "fingerprint": self.fingerprint,
            "written_with": self.written_with,
        }
        document["checksum"] = hash_bytes(canonical_json(document))
        return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"

    def _bound(self) -> dict[str, list[int | str]]:
        return {path: [size, digest] for path, (size, digest) in sorted(self.files.items())}


def _determines(path: str) -> bool:
    """Whether a listed file is a small array that determines the rows."""
    return path.startswith(PARAMETERS) and not path.startswith(PARAMETERS + UNEMBEDDING)


def make_geometry(
    settings: CacheSettings, *, d_source: int, d_target: int, train_rows: int, held_out_rows: int, partitions: int
) -> Geometry:
    """The layout of these settings for so many rows. Raises UsageError for sizes that no cache can have."""
    chunk_rows = settings.chunk_rows_of(max(1, max(d_source, d_target) * ITEM_BYTES[STORED_AS[settings.dtype]]))
    rows = {"chunk_rows": chunk_rows, "shard_rows": settings.shard_rows, "segment_rows": settings.segment_rows}
    geometry = Geometry(
        dtype=settings.dtype,
        codec=settings.codec,
        d_source=d_source,
        d_target=d_target,
        target=settings.target,
        train_rows=train_rows,
        held_out_rows=held_out_rows,
        **rows,
        held_out_shard_rows=held_out_shard_rows(**rows, fraction=settings.held_out_fraction),
        partitions=partitions,
    )
    problem = _geometry_problem(geometry)
    if problem:
        raise UsageError(f"A cache cannot have these sizes: {problem}.")
    return geometry


def _geometry_problem(geometry: Geometry) -> str:
    sizes = {key: value for key, value in asdict(geometry).items() if key not in {"dtype", "codec", "target"}}
    for key, value in sizes.items():
        minimum = 0 if key in {"train_rows", "held_out_rows"} else 1
        if type(value) is not int or not minimum <= value < _GEOMETRY_LIMIT:
            return f"{key} is {value!r}"
    if geometry.shard_rows % geometry.chunk_rows or geometry.segment_rows % geometry.shard_rows:
        return "chunks, shards and segments are not multiples of each other"
    if geometry.held_out_shard_rows % geometry.chunk_rows:
        return "a held-out shard is not a multiple of a chunk"
    if geometry.partitions > _PARTITIONS_LIMIT or max(geometry.d_source, geometry.d_target) > _WIDTH_LIMIT:
        return f"a width is above {_WIDTH_LIMIT} or there are more than {_PARTITIONS_LIMIT} partitions"
    arrays = [array for group in geometry.groups.values() for array in group.arrays.values()]
    if (
        sum(array.files for array in arrays) > _FILES_LIMIT
        or max(a.files * a.index_entries for a in arrays) > _CHUNKS_LIMIT
    ):
        return f"there are more than {_FILES_LIMIT} files or {_CHUNKS_LIMIT} chunks"
    return ""


def read_manifest(cache: Path) -> Manifest:
    """The manifest of the cache in this folder.

    Raises UsageError when there is none, DamagedError when it cannot be read, MismatchError for an unknown version.
    """
    path = cache / MANIFEST
    data = read_file(path, limit_bytes=_LIMIT_BYTES)
    if data is not None:
        return parse_manifest(data, location=path)
    if (cache / "journal").is_dir():
        remedy = "Run the same harvest again: it writes the manifest and keeps the rows."
        raise UsageError("The manifest of this cache is missing; its rows are still here.", where=cache, remedy=remedy)
    raise UsageError("There is no cache here.", where=cache, remedy="Run 'nestcoder harvest' first.")


def refuse_links(cache: Path, geometry: Geometry) -> None:
    """Raises DamagedError when a folder of the cache is a link: its files would be outside the cache."""
    groups = [f"{STORE}/{group}" for group in (*geometry.groups, "parameters")]
    arrays = [array.path for group in geometry.groups.values() for array in group.arrays.values()]
    for folder in ("journal", "drafts", STORE, *groups, *arrays):
        if (cache / folder).is_symlink():
            raise DamagedError("A folder of the cache is a link.", where=cache / folder, remedy=_REPAIR)


def parse_manifest(data: bytes, *, location: object) -> Manifest:
    """The manifest in ``data``; ``location`` is named in errors. Raises as ``read_manifest``."""
    try:
        loaded: Any = parse_json(data)
        document = cast("dict[str, Any]", loaded)
        version = document["version"]
        checksum = document.pop("checksum")
        sound = hash_bytes(canonical_json(document)) == checksum
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError("The manifest cannot be read.", where=location, remedy=_REPAIR) from None
    if not sound:
        raise DamagedError("The manifest does not match its own checksum.", where=location, remedy=_REPAIR)
    if version != VERSION:
        what = f"This cache has format version {version!r}; this nestcoder reads version {VERSION}."
        raise MismatchError(what, where=location, remedy="Use the nestcoder that wrote it, or harvest again.")
    try:
        manifest = _build(document)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else "a field is missing"
        raise DamagedError(f"The manifest is not valid ({reason}).", where=location) from None
    if manifest.to_json() != data:
        raise DamagedError("The manifest is not in the form in which it is written.", where=location, remedy=_REPAIR)
    return manifest


def _build(document: dict[str, Any]) -> Manifest:
    form = dict(document["format"])
    seeds = {key: form.pop(key) for key in ("shuffle_seed", "held_out_fraction", "split_seed")}
    CacheSettings(**seeds, dtype=form["dtype"], codec=form["codec"], target=form["target"])
    geometry = Geometry(partitions=form.pop("parts"), **form)
    problem = _geometry_problem(geometry)
    if problem:
        raise ValueError(problem)
    files = {_plain_path(path): (_size(size), str(digest)) for path, (size, digest) in document["files"].items()}
    computed = geometry.zarr_files()
    for path, data in computed.items():
        if files[path] != (len(data), hash_bytes(data)):
            raise ValueError(f"{path} is not the file that follows from these sizes")
    for path in files.keys() - computed.keys():
        if not path.startswith(PARAMETERS):
            raise ValueError(f"{path} does not belong to a cache of these sizes")
    special = tuple(_token(token) for token in document["special_ids"])
    if not isinstance(document["identity"], dict) or not _is_plain(document["written_with"]):
        raise ValueError("identity or written_with is not a mapping")
    manifest = Manifest(
        document["identity"], geometry, **seeds, special_ids=special, files=files, written_with=document["written_with"]
    )
    if manifest.fingerprint != document["fingerprint"]:
        raise ValueError("the fingerprint does not match the contents")
    return manifest


def _plain_path(path: str) -> str:
    names = path.split("/")
    if names[0] != STORE or not all(re.fullmatch(r"[a-z0-9_][a-z0-9_.-]*", name) for name in names):
        raise ValueError(f"path {path!r}")
    return path


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _GEOMETRY_LIMIT:
        raise ValueError(f"number {value!r}")
    return value


def _token(value: Any) -> int:
    # Tokens are stored as int32.
    if _size(value) >= 1 << 31:
        raise ValueError(f"token {value!r}")
    return value


def _is_plain(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def read_bound(folder: Path, name: str, bound: tuple[int, str]) -> bytes:
    """The bytes of a file whose size and xxh3-128 are known. Raises DamagedError when the file has others."""
    path = folder / name
    size, digest = bound
    data = read_file(path, limit_bytes=size)
    if data is None or len(data) != size:
        raise DamagedError("A file of the cache is missing or has another size.", where=path, remedy=_REPAIR)
    if hash_bytes(data) != digest:
        raise DamagedError("A file of the cache does not match its checksum.", where=path, remedy=_REPAIR)
    return data


def first_difference(wanted: Any, found: Any, name: str = "") -> str:
    """The first field in which two plain JSON values differ, with both values; '' when they are equal."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        left = cast("dict[str, Any]", wanted)
        right = cast("dict[str, Any]", found)
        for key in sorted(left.keys() | right.keys()):
            difference = first_difference(left.get(key), right.get(key), f"{name}.{key}" if name else key)
            if difference:
                return difference
        return ""
    return "" if wanted == found and type(wanted) is type(found) else f"{name} is {found!r}, not {wanted!r}"
