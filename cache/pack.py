"""A cache compressed for an archive, and back, byte for byte.

    pack.json     codec, fingerprint, and size and xxh3-128 of every file; written last, with its own checksum
    promises/     the cache's manifest and journals, as they are
    rows.zarr/    the same arrays, their chunks compressed; zarr and others open it as it lies

Packing checks every byte that it reads, unpacking every byte that it writes, both against the cache's own journal.
Nothing in an archive is trusted: zarr.json is computed, codecs are on a list, sizes are known before memory is taken.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from cache import disk
from cache.checksum import canonical_json, crc32c, file_hash
from cache.codec import CODECS, check_codec, codec_json, decode, encoder
from cache.errors import DamagedError, MismatchError, UsageError
from cache.journal import journal_path
from cache.layout import ITEM_BYTES, Array, zarr_document
from cache.manifest import MANIFEST, PACK
from cache.progress import Progress, Silent
from cache.verify import Promise, Promises, read_promises

_VERSION = 1
_LIMIT_BYTES = 1 << 30
_PROMISES = "promises"
_Item = TypeVar("_Item")
_Done = TypeVar("_Done")
Sizes = dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Packing:
    """What was packed or unpacked: ``files`` of rows, and their bytes uncompressed and compressed."""

    codec: str
    files: int
    bytes: int
    packed_bytes: int

    @property
    def ratio(self) -> float:
        """Compressed bytes over uncompressed ones."""
        return self.packed_bytes / max(1, self.bytes)


def pack_cache(path: Path, archive: Path, *, codec: str = "zstd", progress: Progress | None = None) -> Packing:
    """Write the complete cache in ``path`` as a packed one into the folder ``archive``.

    Raises UsageError for an unfinished cache, an unknown codec or a folder that holds a cache, DamagedError.
    """
    check_codec(codec)
    _require_empty(archive)
    promises = _read_promises(path)
    rows = _rows(promises)
    packed = _in_threads(partial(_pack_file, path, archive, codec), rows, "pack", progress)
    sizes = {promise.entry.path: size for promise, size in zip(rows, packed, strict=True)}
    for name, data in _other_files(path, promises, codec).items():
        disk.write_file(archive / name, data, tag="pack")
        sizes[name] = len(data), file_hash([data])
    disk.write_file(archive / PACK, _pack_json(codec, promises.manifest.fingerprint, sizes), tag="pack")
    return _packing(codec, rows, sizes)


def unpack_cache(archive: Path, path: Path, *, progress: Progress | None = None) -> Packing:
    """Write the packed cache in ``archive`` into the folder ``path`` as the cache that it was, to the last byte.

    Raises UsageError for a folder that holds a cache, DamagedError, MismatchError for an unknown version.
    """
    _require_empty(path)
    codec, sizes = read_pack(archive)
    promises = _promises_of(archive, sizes)
    rows, geometry = _rows(promises), promises.manifest.geometry
    _in_threads(partial(_unpack_file, archive, path, codec, sizes), rows, "unpack", progress)
    computed = geometry.zarr_files()
    for name in promises.manifest.files:
        disk.write_file(
            path / name, computed.get(name) or _read(archive, name, promises.manifest.files[name]), tag="pack"
        )
    for name in [*map(journal_path, range(geometry.parts)), MANIFEST]:
        disk.write_file(path / name, _read(archive, f"{_PROMISES}/{name}", sizes[f"{_PROMISES}/{name}"]), tag="pack")
    return _packing(codec, rows, sizes)


def verify_pack(archive: Path, *, progress: Progress | None = None) -> Packing:
    """Check every file of an archive. Raises DamagedError, which names the first bad one, UsageError, MismatchError."""
    codec, sizes = read_pack(archive)
    _in_threads(partial(_check, archive, sizes), sorted(sizes), "verify", progress)
    return _packing(codec, _rows(_promises_of(archive, sizes)), sizes)


def read_pack(archive: Path) -> tuple[str, Sizes]:
    """Codec and files (size, xxh3-128) of an archive. Raises UsageError, DamagedError, MismatchError."""
    path = archive / PACK
    if not path.exists():
        raise UsageError("There is no packed cache here.", where=archive, remedy="'nestcoder cache pack' makes one.")
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _LIMIT_BYTES:
        raise DamagedError("pack.json is no plain file of a sane size.", where=path)
    try:
        loaded: Any = json.loads(path.read_bytes())
        document = cast("dict[str, Any]", loaded)
        if document.pop("checksum") != file_hash([canonical_json(document)]):
            raise ValueError("it does not match its own checksum")
        version, codec = document["version"], document["codec"]
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in document["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"pack.json does not read ({error}).", where=path) from None
    if version != _VERSION or codec not in CODECS:
        what = f"The archive has version {version!r} and codec {codec!r}, which this nestcoder does not read."
        raise MismatchError(what, where=path)
    return codec, files


def _pack_json(codec: str, fingerprint: str, sizes: Sizes) -> bytes:
    document: dict[str, Any] = {
        "format_name": "nestcoder packed cache",
        "version": _VERSION,
        "codec": codec,
        "fingerprint": fingerprint,
        "files": {name: list(size) for name, size in sizes.items()},
    }
    document["checksum"] = file_hash([canonical_json(document)])
    return json.dumps(document, indent=1, sort_keys=True).encode()


def _require_empty(folder: Path) -> None:
    if (folder / PACK).exists() or (folder / MANIFEST).exists():
        raise UsageError("There is a cache here already.", where=folder, remedy="Choose another folder.")


def _read_promises(path: Path) -> Promises:
    """The promises of a complete cache. Raises UsageError for an unfinished one, DamagedError."""
    promises = read_promises(path)
    if promises.faults:
        raise DamagedError(f"{promises.faults[0]}.", where=path, remedy="Run 'nestcoder cache repair' first.")
    committed, whole = promises.segments
    if committed < whole:
        what = f"This cache is not finished: it has {committed} of {whole} segments."
        raise UsageError(what, where=path, remedy="Run the same harvest again; it goes on from there.")
    return promises


def _promises_of(archive: Path, sizes: Sizes) -> Promises:
    """The promises of a packed cache, all of which the archive has files for."""
    promises = _read_promises(archive / _PROMISES)
    journals = map(journal_path, range(promises.manifest.geometry.parts))
    wanted = [*promises.files, *(f"{_PROMISES}/{name}" for name in [MANIFEST, *journals])]
    absent = [name for name in wanted if name not in sizes]
    if absent:
        raise DamagedError(f"The archive lacks {absent[0]}, which its journal promises.", where=archive)
    return promises


def _rows(promises: Promises) -> list[Promise]:
    return [promise for promise in promises.files.values() if promise.array]


def _packing(codec: str, rows: list[Promise], sizes: Sizes) -> Packing:
    packed_bytes = sum(sizes[promise.entry.path][0] for promise in rows)
    return Packing(codec, len(rows), sum(promise.entry.size_bytes for promise in rows), packed_bytes)


def _in_threads(
    call: Callable[[_Item], _Done], items: list[_Item], task: str, progress: Progress | None
) -> list[_Done]:
    said, done = progress or Silent(), list[_Done]()
    said.begin(task, total=len(items), unit="files")
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for result in pool.map(call, items):
            done.append(result)
            said.advance(1)
    said.end()
    return done


def _read(folder: Path, name: str, promised: tuple[int, str]) -> bytes:
    """The bytes of a file. Raises DamagedError when they are not the promised ones."""
    path = folder / name
    if path.is_symlink() or not path.is_file() or path.stat().st_size != promised[0]:
        raise DamagedError("A file is missing, no plain file, or has another size than promised.", where=path)
    data = path.read_bytes()
    if file_hash([data]) != promised[1]:
        raise DamagedError("A file does not match its checksum.", where=path)
    return data


def _check(archive: Path, sizes: Sizes, name: str) -> None:
    _read(archive, name, sizes[name])


def _pack_file(path: Path, archive: Path, codec: str, promise: Promise) -> tuple[int, str]:
    array, entry = promise.array, promise.entry
    assert array is not None
    data = memoryview(_read(path, entry.path, (entry.size_bytes, entry.xxh3)))
    size, encode = array.chunk_rows * array.row_bytes, encoder(codec, ITEM_BYTES[array.item])
    chunks = [encode(data[at * size : (at + 1) * size]) for at in range(array.chunks_in(promise.file))]
    packed = b"".join([*chunks, _index(array, [len(chunk) for chunk in chunks])])
    disk.write_file(archive / entry.path, packed, tag="pack")
    return len(packed), file_hash([packed])


def _index(array: Array, sizes: Iterable[int]) -> bytes:
    """zarr's index behind compressed chunks of these sizes: (offset, bytes) of each, all ones for an absent one."""
    if not array.sharded:
        return b""
    places: list[tuple[int, int]] = []
    offset = 0
    for size in sizes:
        places.append((offset, size))
        offset += size
    absent = (1 << 64) - 1
    places += [(absent, absent)] * (array.index_entries - len(places))
    index = b"".join(struct.pack("<QQ", *place) for place in places)
    return index + struct.pack("<I", crc32c(index))


def _unpack_file(archive: Path, path: Path, codec: str, sizes: Sizes, promise: Promise) -> None:
    array, entry = promise.array, promise.entry
    assert array is not None
    packed = _read(archive, entry.path, sizes[entry.path])
    size = array.chunk_rows * array.row_bytes
    try:
        chunks = [decode(codec, chunk, size) for chunk in _chunks(array, promise.file, packed)]
    except DamagedError as error:
        raise DamagedError(error.what, where=archive / entry.path) from None
    data = b"".join([*chunks, array.index(promise.file)])
    if file_hash([data]) != entry.xxh3:
        raise DamagedError("A file unpacks to other bytes than were packed.", where=archive / entry.path)
    disk.write_file(path / entry.path, data, tag="pack")


def _chunks(array: Array, number: int, packed: bytes) -> Iterable[bytes]:
    """The compressed chunks of a file. Raises DamagedError for an index that is not that of chunks end to end."""
    if not array.sharded:
        return [packed]
    length, count = 16 * array.index_entries + 4, array.chunks_in(number)
    index = packed[-length:]
    sizes = [size for _, size in struct.iter_unpack("<QQ", index[: 16 * count])] if len(index) == length else []
    if _index(array, sizes) != index or sum(sizes) != len(packed) - length:
        raise DamagedError("The index of a packed shard makes no sense.")
    starts = [sum(sizes[:at]) for at in range(count)]
    return [packed[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def _other_files(path: Path, promises: Promises, codec: str) -> dict[str, bytes]:
    """Every file of an archive beside the rows: zarr.json with the codec, small arrays, manifest and journals."""
    manifest = promises.manifest
    names = [MANIFEST, *map(journal_path, range(manifest.geometry.parts))]
    files = {f"{_PROMISES}/{name}": (path / name).read_bytes() for name in names}
    files |= {name: _read(path, name, promised) for name, promised in manifest.files.items()}
    for group in manifest.geometry.groups.values():
        files |= {f"{array.path}/zarr.json": _packed_json(array, codec) for array in group.arrays.values()}
    return files


def _packed_json(array: Array, codec: str) -> bytes:
    document = json.loads(array.zarr_json())
    codecs = document["codecs"][0]["configuration"]["codecs"] if array.sharded else document["codecs"]
    codecs.append(codec_json(codec, ITEM_BYTES[array.item]))
    return zarr_document(document)
