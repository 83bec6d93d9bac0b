"""Small files and the JSON in them, read without trust: whatever is there, it is read or refused by a typed error."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, cast

from common.disk import READ_ONLY
from common.errors import DamagedError, DiskError, UsageError
from common.units import in_bytes

_DEEPEST = 100
"""No JSON of ours is nested half as deeply."""


def read_file(path: Path, *, limit_bytes: int) -> bytes | None:
    """The bytes of a file of at most ``limit_bytes``, None where there is none.

    Raises DamagedError for a link, a folder, a pipe or a larger file, DiskError when the system refuses.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise UsageError("This path is not valid: it holds a NUL character.", where=path) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedError("A file is a link, which is not followed.", where=path) from None
        raise _unreadable(error, path) from None
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        os.close(descriptor)
        raise DamagedError("This is not a plain file.", where=path)
    with os.fdopen(descriptor, "rb") as file:
        if state.st_size > limit_bytes:
            sizes = f"{in_bytes(state.st_size)}, more than the {in_bytes(limit_bytes)} that it can have"
            raise DamagedError(f"A file has {sizes}.", where=path)
        try:
            return file.read()
        except OSError as error:
            raise _unreadable(error, path) from None


def _unreadable(error: OSError, path: Path) -> DiskError:
    remedy = "Ask its owner for the right to read it." if error.errno in READ_ONLY else "Check the disk."
    return DiskError(f"A file cannot be read: {os.strerror(error.errno or 0)}.", where=path, remedy=remedy)


def parse_json(text: bytes | str) -> Any:
    """The value that a file's JSON text stands for; nothing in it is trusted.

    Raises ValueError for anything that is not JSON, for NaN and infinity, for integers of thousands of digits, and for
    values nested deeper than any of ours, which would end later code in a RecursionError.
    """
    try:
        value: Any = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return value
    raise ValueError("it is nested too deeply")


def _inner(value: Any) -> list[Any]:
    """The lists and mappings directly inside a value."""
    if isinstance(value, dict):
        inner: list[Any] = list(cast("dict[str, Any]", value).values())
    else:
        inner = cast("list[Any]", value) if isinstance(value, list) else []
    return [item for item in inner if isinstance(item, dict | list)]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")
