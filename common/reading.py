"""Reads small files and their JSON without trusting them: every file is read, or refused with a typed error."""

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
"""Levels of nested JSON that are read: more than twice those of any file of ours."""


def read_file(path: Path, *, limit_bytes: int) -> bytes | None:
    """The bytes of a file of at most ``limit_bytes``; None if it does not exist.

    Raises DamagedError for a link, a folder, a pipe or a larger file, DiskError when the system refuses.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise UsageError("This path is not valid: it contains a NUL character.", where=path) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DamagedError("The file is a link, which is not followed.", where=path) from None
        raise _unreadable(error, path) from None
    state = os.fstat(descriptor)
    if not stat.S_ISREG(state.st_mode):
        os.close(descriptor)
        raise DamagedError("This is not a plain file.", where=path)
    with os.fdopen(descriptor, "rb") as file:
        if state.st_size > limit_bytes:
            sizes = f"{in_bytes(state.st_size)}; it can have at most {in_bytes(limit_bytes)}"
            raise DamagedError(f"The file has {sizes}.", where=path)
        try:
            return file.read()
        except OSError as error:
            raise _unreadable(error, path) from None


def _unreadable(error: OSError, path: Path) -> DiskError:
    remedy = "Ask its owner for permission to read it." if error.errno in READ_ONLY else "Check the disk."
    return DiskError(f"The file cannot be read: {os.strerror(error.errno or 0)}.", where=path, remedy=remedy)


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text that is not trusted.

    Raises ValueError for anything that is not JSON, for NaN and infinity, for integers of thousands of digits, and for
    values that are nested deeper than any of ours, which would raise RecursionError in later code.
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
    raise ValueError(f"it contains {name}")
