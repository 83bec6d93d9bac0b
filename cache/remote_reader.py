"""Reads a cache at a URL, through a local folder of bounded size.

Chunks are copied when their rows are needed. A chunk is a known range of bytes with its own checksum, so a shuffled
epoch transfers every byte once. Each copy is checked against the journal; one that does not match is fetched again
once.
"""

import os
from pathlib import Path
from typing import Any

from cache.config import CacheSettings
from cache.format.array import Array
from cache.format.journal import FileEntry, journal_path
from cache.format.manifest import MANIFEST, Manifest, parse_manifest
from cache.format.parameters import PARAMETERS, UNEMBEDDING
from cache.format.seal import seal_path
from cache.reader import CacheReader, View
from cache.storage.chunk_copies import ChunkCopies
from cache.storage.columns import Column, PassingColumn
from cache.storage.remote_store import RemoteStore
from common import disk
from common.errors import DamagedError
from common.hashing import hash_bytes, hash_file


class RemoteColumn(PassingColumn):
    """One array of a remote cache: chunks are copied, mapped and checked when they are first needed."""

    connections = 8  # transfers at once: one connection to an object store uses a small share of the bandwidth

    def __init__(self, copies: ChunkCopies, array: Array, entries: dict[int, FileEntry]) -> None:
        super().__init__(copies.folder, array, entries, verify=True, lru=copies.lru)
        self._copies = copies

    def _load(self, chunk: int) -> None:
        try:
            self._fetch(chunk)
        except DamagedError:
            # The copy of an earlier process, or this transfer, may have gone wrong: fetch it once more.
            self._copies.remove((self.array.path, chunk))
            self._fetch(chunk)

    def _fetch(self, chunk: int) -> None:
        number = chunk // self.array.index_entries
        size = self.array.chunk_bytes
        try:
            path = self._copies.fetch(self.array, chunk, self._entries[number])
            self._region.map_file(path, offset=chunk * size, size_bytes=size, file_bytes=size)
            self._check(chunk)
        except DamagedError as error:
            raise DamagedError(error.what, where=self._location(number)) from None

    def _location(self, number: int) -> str:
        return f"{self._copies.store.url}/{self.array.file_path(number)}"

    def _release(self, chunk: int) -> None:
        super()._release(chunk)
        self._copies.remove((self.array.path, chunk))


class RemoteReader(CacheReader):
    """A ``CacheReader`` over copies of the chunks of a remote cache."""

    def __init__(self, copies: ChunkCopies, manifest: Manifest, *, view: View, device: str) -> None:
        super().__init__(copies.folder, manifest, verify=True, view=view, device=device)
        self.copies = copies

    def make_column(self, array: Array, entries: dict[int, FileEntry]) -> Column:
        """One array of this cache, read from copies of its chunks."""
        return RemoteColumn(self.copies, array, entries)

    def bound(self, path: str) -> bytes:
        """The bytes of a file that the manifest lists; the unembedding is copied when it is first needed."""
        size, digest = self.manifest.files[path]
        _fetch(self.copies.store, self.path, path, size=size, digest=digest)
        return super().bound(path)


def open_remote(
    url: str,
    *,
    expect: dict[str, Any] | None = None,
    view: View = "mlp_in",
    local: Path | None = None,
    limit_bytes: int = CacheSettings().remote_bytes,
    device: str = "cpu",
) -> RemoteReader:
    """Open the cache at ``url``: manifest, journals and small arrays are copied now, rows and the unembedding later.

    At most ``limit_bytes`` of rows are kept, below ``local`` (None: the user's cache folder). Raises what
    ``CacheReader.open`` raises, DiskError when the network refuses, CapacityError when a batch needs more than that.
    """
    store = RemoteStore(url)
    data = store.read(MANIFEST)
    manifest = parse_manifest(data, location=f"{url}/{MANIFEST}")
    folder = (local or _user_cache()) / manifest.fingerprint
    tag = str(os.getpid())

    for partition in range(manifest.geometry.partitions):
        for path in (journal_path(partition), seal_path(partition)):
            if store.has(path):
                disk.write_file(folder / path, store.read(path), tag=tag)
            else:
                disk.remove(folder / path)
    for name, (size, digest) in manifest.files.items():
        if name.startswith(PARAMETERS) and not name.startswith(PARAMETERS + UNEMBEDDING):
            _fetch(store, folder, name, size=size, digest=digest)
    disk.write_file(folder / MANIFEST, data, tag=tag)

    reader = RemoteReader(ChunkCopies(store, folder, limit_bytes=limit_bytes), manifest, view=view, device=device)
    reader.check(expect)
    return reader


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nestcoder"


def _fetch(store: RemoteStore, folder: Path, name: str, *, size: int, digest: str) -> None:
    """Copy a file that the manifest lists, unless it is here already."""
    if not _has_hash(folder / name, digest):
        disk.write_file(folder / name, _read_checked(store, name, size, digest), tag=str(os.getpid()))


def _has_hash(path: Path, digest: str) -> bool:
    return path.is_file() and hash_file(path) == digest


def _read_checked(store: RemoteStore, name: str, size: int, digest: str) -> bytes:
    data = store.read(name, 0, size) if size else b""
    if hash_bytes(data) != digest:
        raise DamagedError("A file of the remote cache does not match its checksum.", where=f"{store.url}/{name}")
    return data
