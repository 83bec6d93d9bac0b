"""Reads a cache on any fsspec URL (s3://, gs://, hf://, memory://), through a local folder of bounded size.

Shards are copied chunk by chunk as rows are needed: a chunk is one stretch of bytes at a known place, with a checksum
of its own, so a shuffled epoch moves every byte once. Each copy is checked against the journal; the least recently used
is given up first, one in use never. A broken or short transfer, or a wrong copy, is tried again.
"""

import os
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from jaxtyping import Int64

from cache import disk
from cache.checksum import file_hash
from cache.errors import CapacityError, DamagedError, DiskError, UsageError
from cache.journal import FileEntry, journal_path
from cache.layout import STORE, Array
from cache.manifest import MANIFEST, Manifest, parse_manifest
from cache.reader import CacheReader, Column, View

LOCAL_BYTES = 20_000_000_000
_ATTEMPTS = 4
_CONNECTIONS = 8
Key = tuple[str, int]


class Remote:
    """A folder on a remote file system."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            opened: tuple[Any, str] = fsspec.core.url_to_fs(self.url)  # pyright: ignore[reportAttributeAccessIssue]
        except (ImportError, ValueError) as error:
            raise UsageError(f"This URL cannot be opened: {error}.", where=url) from None
        self._system, self._root = opened
        if isinstance(self._system, LocalFileSystem):
            self._system.auto_mkdir = True

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes of a file, or a stretch of them; tried again when the connection breaks.

        Raises DiskError, and DamagedError for an absent file.
        """
        size = None if start is None or end is None else end - start
        problem: object = ""
        for _ in range(_ATTEMPTS):
            try:
                data = bytes(self._system.cat_file(f"{self._root}/{name}", start=start, end=end))
            except FileNotFoundError:
                raise DamagedError("A file of the remote cache is missing.", where=f"{self.url}/{name}") from None
            except Exception as error:  # every file system has its own
                problem, data = error, b""
            if data and size in (None, len(data)):
                return data
            problem = problem or f"{len(data)} of {size} bytes came"
            self._system.invalidate_cache()
        raise self._refused("read", name, problem)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        try:
            self._system.invalidate_cache()
            return bool(self._system.exists(f"{self._root}/{name}"))
        except Exception as error:
            raise self._refused("look for", name, error) from None

    def write(self, name: str, data: bytes) -> None:
        """Put a file there, whole or not at all, and see that it has its size."""
        path, problem = f"{self._root}/{name}", None
        for _ in range(_ATTEMPTS):
            try:
                self._system.pipe_file(path, data)
                self._system.invalidate_cache()
                if self._system.info(path)["size"] == len(data):
                    return
            except Exception as error:
                problem = error
        raise self._refused("write", name, problem or "the file has another size than was sent")

    def _refused(self, verb: str, name: str, problem: object) -> DiskError:
        what = f"The network refused to {verb} a file ({type(problem).__name__}: {problem})."
        remedy = "Run the same command again once it answers: it goes on from here."
        return DiskError(what, where=f"{self.url}/{name}", remedy=remedy)


@dataclass(frozen=True)
class Stretch:
    """A chunk, as (array, number), and where it lies: ``size_bytes`` bytes of ``file`` from ``start`` on."""

    key: Key
    file: str
    start: int
    size_bytes: int


class LocalChunks:
    """Copies of a remote cache's chunks in ``folder``, at most ``limit_bytes`` of them."""

    def __init__(self, remote: Remote, folder: Path, *, limit_bytes: int) -> None:
        self.remote, self.folder, self._limit = remote, folder, limit_bytes
        self._held: OrderedDict[Key, tuple[int, Callable[[], None]]] = OrderedDict()
        self._bytes = 0
        self._pins: Counter[Key] = Counter()
        self._lock = threading.Lock()
        self.fetched = 0
        self._sweep()

    def _sweep(self) -> None:
        """Forget what earlier processes left beyond the limit, oldest first."""
        files = [file for file in (self.folder / "chunks").rglob("*") if file.is_file() and not file.is_symlink()]
        total = sum(file.stat().st_size for file in files)
        for file in sorted(files, key=lambda file: file.stat().st_mtime):
            if total <= self._limit // 2:
                return
            total -= file.stat().st_size
            file.unlink(missing_ok=True)

    def path(self, key: Key) -> Path:
        """Where the copy of a chunk lies."""
        return self.folder / "chunks" / key[0] / str(key[1])

    def fetch(self, wanted: Sequence[Stretch]) -> None:
        """Copy those that are not here, several at a time."""
        absent = [item for item in wanted if not self._is_here(item)]
        if absent:
            with ThreadPoolExecutor(min(_CONNECTIONS, len(absent))) as pool:
                list(pool.map(self._fetch_one, absent))

    def _is_here(self, item: Stretch) -> bool:
        path = self.path(item.key)
        return path.is_file() and path.stat().st_size == item.size_bytes

    def _fetch_one(self, item: Stretch) -> None:
        data, path = self.remote.read(item.file, item.start, item.start + item.size_bytes), self.path(item.key)
        aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_bytes(data)
            aside.rename(path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise DiskError(f"A chunk cannot be copied here: {error.strerror}.", where=path) from None
        self.fetched += 1

    def forget(self, key: Key) -> None:
        """Remove the copy of a chunk."""
        self.path(key).unlink(missing_ok=True)

    @contextmanager
    def in_use(self, keys: Sequence[Key]) -> Generator[None]:
        """While the block runs, none of these chunks is given up."""
        with self._lock:
            self._pins.update(keys)
        try:
            yield
        finally:
            with self._lock:
                self._pins.subtract(keys)
                for key in keys:
                    if key in self._held:
                        self._held.move_to_end(key)

    def hold(self, key: Key, size: int, give_up: Callable[[], None]) -> None:
        """Count a chunk that is now mapped, and make room for it.

        Raises CapacityError when what is in use takes more than the limit.
        """
        with self._lock:
            if key not in self._held:
                self._held[key] = size, give_up
                self._bytes += size
            for other in [other for other in self._held if not self._pins[other]]:
                if self._bytes <= self._limit:
                    return
                freed, release = self._held.pop(other)
                release()
                self.forget(other)
                self._bytes -= freed
            if self._bytes > self._limit:
                what = f"The rows in use take {self._bytes} bytes, but only {self._limit} may be kept here."
                raise CapacityError(what, where=self.folder, remedy="Allow more local bytes, or use smaller batches.")


class RemoteColumn(Column):
    """One array of a remote cache: chunks are copied, mapped and checked when they are first needed."""

    def __init__(self, copies: LocalChunks, array: Array, entries: dict[int, FileEntry]) -> None:
        super().__init__(copies.folder, array, entries, verify=True)
        self._copies = copies

    def need(self, chunks: Int64[np.ndarray, " n"]) -> None:
        """Make the rows of these chunks readable. Raises DiskError, DamagedError, CapacityError."""
        missing = np.unique(chunks[~self._checked[chunks]]).tolist()
        for attempt in range(2 if missing else 0):
            self._copies.fetch([self._describe(chunk) for chunk in missing])
            missing = [chunk for chunk in missing if not self._is_mapped(chunk, last=attempt == 1)]

    @contextmanager
    def using(self, chunks: Int64[np.ndarray, " n"]) -> Generator[None]:
        """``need`` them, and keep them while the block runs."""
        with self._copies.in_use([(self.array.path, chunk) for chunk in np.unique(chunks).tolist()]):
            self.need(chunks)
            yield

    def read_ahead(self, chunks: Int64[np.ndarray, " n"]) -> None:
        """Nothing: a pool may be larger than the folder of copies, so chunks come as batches need them."""

    def _describe(self, chunk: int) -> Stretch:
        number, inside = divmod(chunk, self.array.index_entries)
        start = inside * self._chunk_bytes
        return Stretch((self.array.path, chunk), self.array.file_path(number), start, self._chunk_bytes)

    def _is_mapped(self, chunk: int, *, last: bool) -> bool:
        key, size = (self.array.path, chunk), self._chunk_bytes
        with self._lock:
            if self._checked[chunk]:
                return True
            path = self._copies.path(key)
            self._region.place(path, offset=chunk * size, size_bytes=size, file_bytes=size)
            try:
                self._check(chunk)
            except DamagedError as error:
                self._copies.forget(key)
                if last:
                    where = f"{self._copies.remote.url}/{self._describe(chunk).file}"
                    raise DamagedError(error.what, where=where) from None
                return False
        if self.array.sharded:
            self._copies.hold(key, size, partial(self._give_up, chunk))
        return True

    def _give_up(self, chunk: int) -> None:
        self._checked[chunk] = False
        self._region.forget(offset=chunk * self._chunk_bytes, size_bytes=self._chunk_bytes)


class RemoteReader(CacheReader):
    """A ``CacheReader`` over copies."""

    def __init__(self, copies: LocalChunks, manifest: Manifest, *, view: View) -> None:
        super().__init__(copies.folder, manifest, verify=True, view=view)
        self.copies = copies

    def make_column(self, array: Array, entries: dict[int, FileEntry]) -> Column:
        """An array of this cache."""
        return RemoteColumn(self.copies, array, entries)


def open_remote(
    url: str,
    *,
    expect: dict[str, Any] | None = None,
    view: View = "mlp_in",
    local: Path | None = None,
    limit_bytes: int = LOCAL_BYTES,
) -> RemoteReader:
    """Open the cache at ``url``: manifest, journals and small arrays are copied now, rows as they are needed.

    At most ``limit_bytes`` of rows are kept, below ``local`` (None: the user's cache folder). Raises what
    ``CacheReader.open`` raises, DiskError when the network refuses, CapacityError when a batch needs more than that.
    """
    remote = Remote(url)
    data = remote.read(MANIFEST)
    manifest = parse_manifest(data, where=f"{url}/{MANIFEST}")
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nestcoder"
    folder, tag = (local or usual) / manifest.fingerprint, f"{os.getpid()}"
    for part in range(manifest.geometry.parts):
        if remote.has(journal_path(part)):
            disk.write_file(folder / journal_path(part), remote.read(journal_path(part)), tag=tag)
    for name, (size, digest) in manifest.files.items():
        if name.startswith(f"{STORE}/parameters/") and not _is(folder / name, digest):
            disk.write_file(folder / name, _checked(remote, name, size, digest), tag=tag)
    disk.write_file(folder / MANIFEST, data, tag=tag)
    reader = RemoteReader(LocalChunks(remote, folder, limit_bytes=limit_bytes), manifest, view=view)
    reader.check(expect)
    return reader


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and file_hash([path.read_bytes()]) == digest


def _checked(remote: Remote, name: str, size: int, digest: str) -> bytes:
    data = remote.read(name, 0, size) if size else b""
    if file_hash([data]) != digest:
        raise DamagedError("A file of the remote cache does not match its checksum.", where=f"{remote.url}/{name}")
    return data
