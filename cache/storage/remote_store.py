"""A client for a folder on any file system that fsspec knows (s3://, gs://, hf://, memory://).

A broken or short transfer is tried again; what still fails is a DiskError.
"""

from pathlib import Path
from typing import Any

from common.errors import DamagedError, DiskError, UsageError
from common.run_layout import remote_name

_ATTEMPTS = 4
"""A connection that breaks once or twice is normal; after four failures in a row the network is down."""


def url_of(path: Path, url: str) -> str:
    """The URL below ``url`` of the cache in ``path``: runs/gpt2/layer08/cache is <url>/gpt2/layer08/cache."""
    return f"{url.rstrip('/')}/{remote_name(path)}"


class RemoteStore:
    """Files below a URL, by their names relative to it. Raises UsageError for a URL that cannot be opened."""

    def __init__(self, url: str) -> None:
        # Here, so that a command that opens no URL starts sooner.
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        self.url = url.rstrip("/")
        try:
            opened: tuple[Any, str] = fsspec.core.url_to_fs(self.url)  # pyright: ignore[reportAttributeAccessIssue]
        except (ImportError, ValueError) as error:
            raise UsageError(f"This URL cannot be opened: {error}.", where=url) from None
        self._system, self._root = opened
        if isinstance(self._system, LocalFileSystem):
            self._system.auto_mkdir = True

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """A file, or its bytes ``start`` to ``end``; tried again when the connection breaks.

        Raises DiskError, and DamagedError for a missing file.
        """
        size = None if start is None or end is None else end - start
        problem: object = ""
        for _ in range(_ATTEMPTS):
            try:
                data = bytes(self._system.cat_file(f"{self._root}/{name}", start=start, end=end))
            except FileNotFoundError:
                raise DamagedError("A file of the remote cache is missing.", where=f"{self.url}/{name}") from None
            except Exception as error:  # every file system raises its own errors
                problem = error
                data = b""
            if data and size in (None, len(data)):
                return data
            problem = problem or f"{len(data)} of {size} bytes arrived"
            self._system.invalidate_cache()
        raise self._refused("read", name, problem)

    def has(self, name: str) -> bool:
        """Whether there is such a file. Raises DiskError."""
        try:
            self._system.invalidate_cache()
            return bool(self._system.exists(f"{self._root}/{name}"))
        except Exception as error:
            raise self._refused("look for", name, error) from None

    def write(self, name: str, data: bytes) -> None:
        """Write a file, completely or not at all, and check its size. Raises DiskError."""
        path = f"{self._root}/{name}"
        problem: object = None
        for _ in range(_ATTEMPTS):
            try:
                self._system.pipe_file(path, data)
                self._system.invalidate_cache()
                if self._system.info(path)["size"] == len(data):
                    return
            except Exception as error:
                problem = error
        raise self._refused("write", name, problem or "the file does not have the size that was sent")

    def remove(self, name: str = "") -> None:
        """Remove a file, or all of the folder, if it exists. Raises DiskError."""
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
        remedy = "Run the same command again when the network works: it goes on from here."
        return DiskError(what, where=f"{self.url}/{name}", remedy=remedy)
