"""Dictionaries below a URL of any file system that fsspec knows: s3://, gs://, memory://.

First a file's size is compared with the limits for local files. Then it is copied, completely or not at all, below the
user's cache folder, under the checksums that the file system gives. So only a file that has changed is fetched again.
"""

import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from common import disk
from common.errors import DiskError, MismatchError, NestcoderError, UsageError
from common.processes import locks
from common.progress import Progress
from common.units import in_bytes
from transcoder.formats.files.pickles import LIMIT_BYTES
from transcoder.formats.files.safe import JSON_LIMIT_BYTES

_PIECE_BYTES = 16 << 20
"""Bytes that are read at a time: large enough for a fast network, small beside the memory."""
_DEPTH = 2
"""No layout has files deeper than checkpoints/final.pt."""
_NAMING_PARTS = 4
"""Of the URL's path, kept in the copy's: some layouts are named by their folders, layer_8/width_16k/average_l0_52."""


class RemoteFolder:
    """The folder that ``url`` means, or that its file lies in; ``inside`` is then that file's name, else empty.

    UsageError: no file system of this name, or nothing there. DiskError: it does not answer.
    """

    def __init__(self, url: str, *, progress: Progress) -> None:
        self.url = url
        self._progress = progress
        try:
            opened: tuple[Any, str] = fsspec.core.url_to_fs(url)  # pyright: ignore[reportAttributeAccessIssue]
        except (ImportError, ValueError) as error:
            what = f"'{url}' is not an address that a dictionary can be fetched from: {error}."
            raise UsageError(
                what, remedy="Give a folder, a file, hf:user/repository/path, or s3://bucket/path."
            ) from None
        self._system, path = opened
        with self._answers():
            self._system.invalidate_cache()
            is_file = bool(self._system.isfile(path))
        above, _, name = path.rpartition("/")
        self._root = above if is_file else path.rstrip("/")
        self.inside = name if is_file else ""

    def paths(self) -> list[str]:
        """Every file there, relative to the folder. Raises DiskError."""
        with self._answers():
            found: list[str] = self._system.find(self._root, maxdepth=_DEPTH)
            if not found:
                self._say_why_not()
        return sorted(path.removeprefix(f"{self._root}/") for path in found)

    def _say_why_not(self) -> None:
        """Raise if the server does not answer: it lists nothing then, just as a server that has nothing."""
        try:
            self._system.info(f"{self._root}/{self.inside}".rstrip("/"))
        except FileNotFoundError as error:
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                raise error.__cause__ from None

    def fetch(self, names: Sequence[str]) -> Path:
        """A local folder with these files. MismatchError: one is too large. DiskError: the network or disk refused."""
        sizes = {name: self._size(name) for name in names}
        with self._answers():
            checksums = [(name, self._system.checksum(f"{self._root}/{name}")) for name in sorted(names)]
        stamp = hashlib.sha256(repr((self.url, checksums)).encode()).hexdigest()[:16]
        top = _copies() / stamp
        folders = [name for name in PurePosixPath(self._root).parts if name not in ("/", "..")]
        folder = top.joinpath(*folders[-_NAMING_PARTS:])
        with locks.lock(top / "download.lock"):
            for name, size in sizes.items():
                target = folder / name
                if not target.is_file():
                    self._progress.begin(f"download {name}", total=size, unit="bytes")
                    disk.write_file(target, self._pieces(name, size))
                    self._progress.end()
        return folder

    def _size(self, name: str) -> int:
        address = f"{self._root}/{name}"
        with self._answers():
            size = self._system.info(address).get("size")
        if size is None:
            what = "The server does not say how large this file is."
            raise UsageError(what, where=address, remedy="Download it, and give its path.")
        limit = JSON_LIMIT_BYTES if PurePosixPath(name).suffix in {".json", ".yaml"} else LIMIT_BYTES
        if size > limit:
            what = f"The file has {in_bytes(size)}; at most {in_bytes(limit)} are opened."
            raise MismatchError(what, where=address)
        return int(size)

    def _pieces(self, name: str, size: int) -> Iterator[bytes]:
        """The bytes of a file. Raises DiskError unless as many come as were announced."""
        came = 0
        with self._answers(), self._system.open(f"{self._root}/{name}", "rb") as file:
            while piece := file.read(_PIECE_BYTES):
                came += len(piece)
                if came > size:
                    break
                self._progress.advance(len(piece))
                yield piece
        if came != size:
            what = f"{came:,} bytes came instead of the {size:,} that were announced."
            raise DiskError(what, where=f"{self.url}: {name}", remedy="Run the same command again.")

    @contextmanager
    def _answers(self) -> Generator[None]:
        """Turns the errors of any file system, of which each has its own, into a DiskError."""
        try:
            yield
        except NestcoderError:
            raise
        except Exception as error:
            what = f"The dictionary could not be downloaded ({type(error).__name__}: {error})."
            remedy = "Check the URL, the network and your credentials, and run the same command again."
            raise DiskError(what, where=self.url, remedy=remedy) from None


def _copies() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nestcoder" / "dictionaries"
