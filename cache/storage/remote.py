"""Reads a cache on any fsspec URL (s3://, gs://, hf://, memory://), through a local folder of bounded size.

Shards are copied chunk by chunk as rows are needed: a chunk is one stretch of bytes at a known place, with a checksum
of its own, so a shuffled epoch moves every byte once. Each copy is checked against the journal; the least recently used
is given up first, one in use never. A broken or short transfer, or a wrong copy, is tried again.
"""

import os
import stat
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from cache.config import CacheSettings
from cache.format.chunks import unpack_into
from cache.format.journal import FileEntry, journal_path
from cache.format.layout import STORE, Array
from cache.format.manifest import MANIFEST, Manifest, parse_manifest
from cache.reader import CacheReader, View
from cache.storage.chunk_lru import Held, Key
from cache.storage.columns import Column, PassingColumn
from common import disk
from common.errors import DamagedError, DiskError, UsageError
from common.hashing import file_hash
from common.run_layout import remote_name

_ATTEMPTS = 4
_MOST_CHUNKS = 24_000
"""A chunk that is near is a mapping of its own, with another beside it, and Linux grants a process 65,530."""


def url_of(path: Path, url: str) -> str:
    """Where below ``url`` the cache in ``path`` lies: runs/gpt2/layer08/cache at <url>/gpt2/layer08/cache."""
    return f"{url.rstrip('/')}/{remote_name(path)}"


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

    def remove(self, name: str = "") -> None:
        """Remove a file, or all of the folder, if it is there."""
        path = f"{self._root}/{name}".rstrip("/")
        try:
            self._system.invalidate_cache()
            if self._system.exists(path):
                self._system.rm(path, recursive=not name)
                self._system.invalidate_cache()
        except Exception as error:
            raise self._refused("remove", name, error) from None

    def _refused(self, verb: str, name: str, problem: object) -> DiskError:
        what = f"The network refused to {verb} a file ({type(problem).__name__}: {problem})."
        remedy = "Run the same command again once it answers: it goes on from here."
        return DiskError(what, where=f"{self.url}/{name}", remedy=remedy)


class LocalChunks:
    """Copies of a remote cache's chunks in ``folder``, unpacked, at most ``limit_bytes`` of them."""

    def __init__(self, remote: Remote, folder: Path, *, limit_bytes: int) -> None:
        self.remote, self.folder = remote, folder
        self.held = Held(limit_bytes, where=folder, limit=_MOST_CHUNKS)
        self.fetched = 0
        self._count_earlier()

    def _count_earlier(self) -> None:
        """Count what earlier processes left, oldest first; what is beyond the limit is forgotten."""
        found: list[tuple[float, int, Key]] = []
        for file in (self.folder / "chunks").rglob("*"):
            with suppress(FileNotFoundError):  # another process may be tidying up
                state = file.lstat()
                if stat.S_ISREG(state.st_mode) and file.name.isdecimal():
                    key = file.parent.relative_to(self.folder / "chunks").as_posix(), int(file.name)
                    found.append((state.st_mtime, state.st_size, key))
        for _, size, key in sorted(found):
            self.held.add(key, size, partial(self.forget, key))

    def path(self, key: Key) -> Path:
        """Where the copy of a chunk lies."""
        return self.folder / "chunks" / key[0] / str(key[1])

    def fetch(self, array: Array, chunk: int, entry: FileEntry) -> Path:
        """The copy of a chunk, made now if it is not here."""
        path, (number, inside) = self.path((array.path, chunk)), divmod(chunk, array.index_entries)
        if not (path.is_file() and path.stat().st_size == array.chunk_bytes):
            start, size = entry.stretch(inside, array.chunk_bytes)
            data = bytearray(array.chunk_bytes)
            unpack_into(memoryview(data), array, self.remote.read(array.file_path(number), start, start + size))
            self._keep(path, data)
        return path

    def _keep(self, path: Path, data: bytearray) -> None:
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


class RemoteColumn(PassingColumn):
    """One array of a remote cache: chunks are copied, mapped and checked when they are first needed."""

    connections = 8

    def __init__(self, copies: LocalChunks, array: Array, entries: dict[int, FileEntry]) -> None:
        super().__init__(copies.folder, array, entries, verify=True, held=copies.held)
        self._copies = copies

    def _bring(self, chunk: int) -> None:
        try:
            self._fetch(chunk)
        except DamagedError:
            # A copy that an earlier process left, or a transfer gone wrong: once more from afar.
            self._copies.forget((self.array.path, chunk))
            self._fetch(chunk)

    def _fetch(self, chunk: int) -> None:
        number, size = chunk // self.array.index_entries, self.array.chunk_bytes
        try:
            path = self._copies.fetch(self.array, chunk, self._entries[number])
            self._region.place(path, offset=chunk * size, size_bytes=size, file_bytes=size)
            self._check(chunk)
        except DamagedError as error:
            raise DamagedError(error.what, where=self._where(number)) from None

    def _where(self, number: int) -> str:
        return f"{self._copies.remote.url}/{self.array.file_path(number)}"

    def _give_up(self, chunk: int) -> None:
        super()._give_up(chunk)
        self._copies.forget((self.array.path, chunk))


class RemoteReader(CacheReader):
    """A ``CacheReader`` over copies."""

    def __init__(self, copies: LocalChunks, manifest: Manifest, *, view: View, device: str) -> None:
        super().__init__(copies.folder, manifest, verify=True, view=view, device=device)
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
    limit_bytes: int = CacheSettings().remote_bytes,
    device: str = "cpu",
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
    reader = RemoteReader(LocalChunks(remote, folder, limit_bytes=limit_bytes), manifest, view=view, device=device)
    reader.check(expect)
    return reader


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and file_hash([path.read_bytes()]) == digest


def _checked(remote: Remote, name: str, size: int, digest: str) -> bytes:
    data = remote.read(name, 0, size) if size else b""
    if file_hash([data]) != digest:
        raise DamagedError("A file of the remote cache does not match its checksum.", where=f"{remote.url}/{name}")
    return data
