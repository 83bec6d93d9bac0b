"""Standard streams whose errors do not end a command: a closed pipe, a full disk of the log, a closed stream."""

import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from common.errors import DiskError

if TYPE_CHECKING:
    from typing_extensions import Buffer


def protect_standard_streams() -> None:
    """Let work go on when standard output or standard error cannot be written.

    Standard error shows progress and warnings of libraries: after a failure they are dropped. Standard output shows the
    result: if its reader has gone (``| head -1``) the rest is dropped; any other failure is a DiskError when the result
    is written.
    """
    _open_missing_streams()
    sys.stdout = _protected(sys.stdout, descriptor=1, may_fail=False)
    sys.stderr = _protected(sys.stderr, descriptor=2, may_fail=True)


def _open_missing_streams() -> None:
    """Open /dev/null under every standard number that is closed (``2>&-``).

    Else the next file that is opened would get the number, and a library's warning would be written into a shard.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def _protected(stream: TextIO | None, *, descriptor: int, may_fail: bool) -> TextIO:
    if stream is not None:
        stream.flush()
    raw = _Tolerant(descriptor, may_fail=may_fail)
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=True)


class _Tolerant(io.RawIOBase):
    """A descriptor that is written until the first failure; everything after that is dropped."""

    def __init__(self, descriptor: int, *, may_fail: bool) -> None:
        self._descriptor = descriptor
        self._may_fail = may_fail
        self._broken = False

    def writable(self) -> bool:
        """Always true."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: "Buffer", /) -> int:
        """Write ``data``, or drop it after an earlier failure; returns its size. Raises DiskError if not
        ``may_fail``."""
        size = memoryview(data).nbytes
        if self._broken:
            return size
        try:
            return os.write(self._descriptor, data)
        except OSError as error:
            self._broken = True
            if self._may_fail or isinstance(error, BrokenPipeError):
                return size
            what = f"The result could not be written to standard output: {os.strerror(error.errno or 0)}."
            raise DiskError(what, remedy="The work itself is done; run the same command again to see it.") from None
