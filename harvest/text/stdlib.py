"""The default text: the standard library of the running interpreter, each file one document.

Modules that a system may package separately or change are left out (tests, tkinter, the build's settings), and so is
the encodings package, which is tables. The others are the same on every machine with the same Python version;
``StdlibIdentity`` has their hash.
"""

import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import xxhash

_SHIPPED_APART = frozenset({
    "__pycache__", "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "lib-dynload", "site-packages",
    "dist-packages", "test", "tests", "tkinter", "turtle.py", "turtledemo", "venv",
})  # fmt: skip


@dataclass(frozen=True)
class StdlibIdentity:
    """Python version, number of files, characters, and the xxh3-128 of all names and texts in order."""

    python: str
    files: int
    characters: int
    hash: str


@cache
def stdlib_files(root: Path | None = None) -> tuple[Path, ...]:
    """The files below ``root`` (default: this interpreter's library), in the order of their names."""
    root = root or Path(sysconfig.get_paths()["stdlib"])
    # Folders of other packages are not entered: site-packages may be larger than the library.
    below = (path for top in root.iterdir() if _belongs(top.relative_to(root)) for path in (top, *top.rglob("*.py")))
    files = (path for path in below if path.suffix == ".py" and _belongs(path.relative_to(root)))
    return tuple(sorted(files, key=lambda path: path.relative_to(root).as_posix()))


def _belongs(relative: Path) -> bool:
    top = relative.parts[0].removesuffix(".py")
    return (
        top in sys.stdlib_module_names
        and not top.startswith("_sysconfigdata")
        and _SHIPPED_APART.isdisjoint(relative.parts)
    )


def stdlib_documents() -> Iterator[tuple[str, str]]:
    """Yield (relative name, text) of every non-empty file; line ends are ``\\n`` on every system."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in stdlib_files(root):
        if text := path.read_text(encoding="utf-8"):
            yield path.relative_to(root).as_posix(), text


def stdlib_identity() -> StdlibIdentity:
    """The identity of this interpreter's library, computed from its bytes."""
    digest = xxhash.xxh3_128()
    files = 0
    characters = 0
    for name, text in stdlib_documents():
        digest.update(f"{name}\0{text}\0".encode())
        files = files + 1
        characters = characters + len(text)
    return StdlibIdentity(python=sys.version.split()[0], files=files, characters=characters, hash=digest.hexdigest())
