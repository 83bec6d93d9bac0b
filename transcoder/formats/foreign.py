"""Transcoders of other tools, by the layout of their files: a new layout is a module here and a line in ``FORMATS``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transcoder.formats.circuit_tracer import find_circuit_tracer, read_circuit_tracer
from transcoder.formats.gemma_scope import locate, read_gemma_scope
from transcoder.formats.saelens import find_saelens, read_saelens
from transcoder.formats.wanted import Wanted as Wanted
from transcoder.transcoder import Transcoder


@dataclass(frozen=True)
class Format:
    """``find`` gives the file or folder that a path means, or None where it is of another layout; ``read`` reads it."""

    find: Callable[[Path, Wanted], Path | None]
    read: Callable[[Path, Wanted], Transcoder]


def _find_gemma_scope(path: Path, wanted: Wanted) -> Path:
    """UsageError where there is none."""
    return locate(path, layer=wanted.layer, dict_size=wanted.dict_size, l0=wanted.l0)


def _read_gemma_scope(path: Path, wanted: Wanted) -> Transcoder:
    return read_gemma_scope(path, d_source=wanted.d_source, d_target=wanted.d_target)


# Asked in this order. The last one refuses what none of them knows.
FORMATS: dict[str, Format] = {
    "saelens": Format(find_saelens, read_saelens),
    "circuit-tracer": Format(find_circuit_tracer, read_circuit_tracer),
    "gemma-scope": Format(_find_gemma_scope, _read_gemma_scope),
}


def read_foreign(path: Path, wanted: Wanted) -> Transcoder:
    """The transcoder at ``path``, in whichever of the layouts it is.

    UsageError: no such thing there. DamagedError: not what its layout promises. MismatchError: another width, layer or
    convention.
    """
    for layout in FORMATS.values():
        found = layout.find(path, wanted)
        if found is not None:
            return layout.read(found, wanted)
    raise AssertionError("the last layout refuses what none knows")
