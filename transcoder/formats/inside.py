"""The dictionary in a folder that is none itself: that of a folder inside it, if only one of those is one.

What an export or a download leaves is often one folder within another: OUT/circuit_tracer, OUT/sparsify/h.8.mlp.
"""

from collections.abc import Iterator
from pathlib import Path

from common.errors import UsageError
from common.progress import Progress
from transcoder.formats.foreign import FORMATS
from transcoder.formats.peers.circuit_tracer_clt import find_circuit_tracer_clt
from transcoder.formats.wanted import Wanted

DEPTH = 3
"""Folders within folders: none that is read lies deeper, and a home folder is not searched through."""
_MOST = 1000
"""Folders that are looked into; whoever has more names the one that is meant."""
_NAMED = 6
"""So many dictionaries are named in a message."""
_NEAREST_ONE = "gemma-scope"
"""The layout that looks for its own files in the folders inside, and refuses what none knows."""


def dictionary_in(path: Path, wanted: Wanted, *, progress: Progress) -> Path:
    """``path`` itself where it is a dictionary, or nothing inside it is one; else the one folder inside that is, which
    ``progress`` is told. Raises UsageError where several are."""
    if not path.is_dir() or _is_dictionary(path, wanted) or any(path.rglob("params.npz")):
        return path
    found = list(_dictionaries(path, wanted, depth=DEPTH, left=[_MOST]))
    if len(found) > 1:
        named = ", ".join(folder.relative_to(path).as_posix() for folder in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        what = f"The folder holds {len(found)} dictionaries of known tools: {named}{more}."
        raise UsageError(what, where=path, remedy="Name the one that is meant.")
    if not found:
        return path
    progress.note(f"{path} has one dictionary, in {found[0].relative_to(path).as_posix()}; it is used.")
    return found[0]


def _dictionaries(folder: Path, wanted: Wanted, *, depth: int, left: list[int]) -> Iterator[Path]:
    """The folders inside that are one; of ``left`` those that may still be looked into are counted down."""
    for inside in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")):
        left[0] -= 1
        if left[0] < 0:
            return
        if _is_dictionary(inside, wanted):
            yield inside
        elif depth > 1:
            yield from _dictionaries(inside, wanted, depth=depth - 1, left=left)


def _is_dictionary(folder: Path, wanted: Wanted) -> bool:
    layouts = [layout for name, layout in FORMATS.items() if name != _NEAREST_ONE]
    return bool(find_circuit_tracer_clt(folder) or any(layout.find(folder, wanted) for layout in layouts))
