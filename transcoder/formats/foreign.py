"""Transcoders of other tools, by the layout of their files: a new layout needs a module in ``peers`` and a line
here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import DamagedError, MismatchError, UsageError
from transcoder.formats.about import About
from transcoder.formats.peers.circuit_tracer import (
    find_circuit_tracer,
    frame_circuit_tracer,
    read_circuit_tracer,
    write_circuit_tracer,
)
from transcoder.formats.peers.dictionary_learning import (
    find_dictionary_learning,
    read_dictionary_learning,
    write_dictionary_learning,
)
from transcoder.formats.peers.gemma_scope import folder_of, locate, read_gemma_scope, write_gemma_scope
from transcoder.formats.peers.gemma_scope_2 import find_gemma_scope_2, read_gemma_scope_2
from transcoder.formats.peers.gpt2_transcoders import find_gpt2_transcoder, read_gpt2_transcoder
from transcoder.formats.peers.matryoshka import find_matryoshka, read_matryoshka
from transcoder.formats.peers.openmoss import find_openmoss, read_openmoss
from transcoder.formats.peers.saelens import find_saelens, read_saelens, write_saelens
from transcoder.formats.peers.sparsify import caveat, find_sparsify, read_sparsify, write_sparsify
from transcoder.formats.sites import module_of
from transcoder.formats.wanted import Wanted as Wanted
from transcoder.transcoder import SourceView, Transcoder


@dataclass(frozen=True)
class Format:
    """``find`` returns the file or folder that a path means, or None for another layout; ``read`` reads it."""

    find: Callable[[Path, Wanted], Path | None]
    read: Callable[[Path, Wanted], Transcoder]


@dataclass(frozen=True)
class Writer:
    """One way to write a transcoder for another tool.

    ``format`` is the layout that reads it back. ``rules`` are the rules that it can store; if ``jumprelu`` is among
    them, other rules become thresholds. ``folder`` is the folder below the one asked for, given the dictionary's size
    and L0; ``view`` the only input that the tool knows, or None. ``rounds``: whether writing folds a bias. ``frame``
    writes what belongs to a whole set before its layers, and gives the layers that it filled with features that never
    fire. ``caveat`` is what is not valid of such a file in its tool.
    """

    format: str
    write: Callable[[Path, Transcoder, About], None]
    folder: Callable[[About, int, float], str]
    rules: frozenset[str]
    view: SourceView | None = None
    skip: bool = True
    two_widths: bool = True
    autoencoders: bool = True
    rounds: Callable[[Transcoder, About], bool] = lambda _transcoder, _about: False
    frame: Callable[[Path, Sequence[About], Transcoder], list[int]] | None = None
    caveat: Callable[[About], str] = lambda _: ""


def _find_gemma_scope(path: Path, wanted: Wanted) -> Path:
    """The last layout: raises UsageError, with a message for all of them, if the path is not of this layout either."""
    remedy = f"Name a folder or a file of {', '.join(FORMATS)}; docs/interop.md lists the files of each."
    if not path.exists():
        raise UsageError("There is no such file or folder.", where=path, remedy=remedy)
    if path.is_file() and path.suffix != ".npz":
        raise UsageError("This is not a dictionary of a known tool.", where=path, remedy=remedy)
    if path.is_dir() and not any(path.rglob("params.npz")):
        found = ", ".join(_described(entry) for entry in sorted(path.iterdir())[:_NAMED]) or "nothing"
        raise UsageError(f"The folder has no dictionary of a known tool; it has {found}.", where=path, remedy=remedy)
    return locate(path, layer=wanted.layer, dict_size=wanted.dict_size, l0=wanted.l0)


def _described(entry: Path) -> str:
    return f"{entry.name}/" if entry.is_dir() else entry.name if entry.is_file() else f"{entry.name} (no regular file)"


def _read_gemma_scope(path: Path, wanted: Wanted) -> Transcoder:
    found = read_gemma_scope(path, d_source=wanted.d_source, d_target=wanted.d_target)
    layer = found.config["layer"]
    if layer not in (None, wanted.layer) and not wanted.force:
        what = f"The dictionary is of layer {layer}, not of layer {wanted.layer}."
        raise MismatchError(what, where=path, remedy="Name one of the same layer, or give --force.")
    return found


_NAMED = 6
"""So many of a folder's entries are named in the message."""

# Tried in this order. The last one refuses a path that none of them reads.
FORMATS: dict[str, Format] = {
    "openmoss": Format(find_openmoss, read_openmoss),  # before SAELens, whose weights have the same file name
    "saelens": Format(find_saelens, read_saelens),
    "sparsify": Format(find_sparsify, read_sparsify),
    "dictionary-learning": Format(find_dictionary_learning, read_dictionary_learning),
    "circuit-tracer": Format(find_circuit_tracer, read_circuit_tracer),
    "gemma-scope-2": Format(find_gemma_scope_2, read_gemma_scope_2),
    "gpt2-transcoders": Format(find_gpt2_transcoder, read_gpt2_transcoder),
    "matryoshka": Format(find_matryoshka, read_matryoshka),
    "gemma-scope": Format(_find_gemma_scope, _read_gemma_scope),
}


def _saelens_folder(about: About, _dict_size: int, _l0: float) -> str:
    return f"saelens/{about.target_hook.replace('hook_', '')}"


def _module_folder(about: About, _dict_size: int, _l0: float) -> str:
    if about.is_autoencoder and about.target_site == "mlp_in":
        raise UsageError("sparsify's autoencoders read what a module writes, and this one reads what the MLP reads.")
    module = module_of(about.target_site, about.layer, architecture=about.architecture)
    if module is None:
        raise UsageError(f"sparsify reads the inputs and outputs of modules, and {about.target_site} is neither.")
    return f"sparsify/{module}"


WRITERS: dict[str, Writer] = {
    "saelens": Writer(
        "saelens",
        write_saelens,
        folder=_saelens_folder,
        rules=frozenset({"topk", "jumprelu", "relu"}),
    ),
    "saelens-jumprelu": Writer(
        "saelens",
        write_saelens,
        folder=lambda about, dict_size, l0: f"{_saelens_folder(about, dict_size, l0)}.jumprelu",
        rules=frozenset({"jumprelu", "relu"}),
    ),
    "sparsify": Writer(
        "sparsify",
        write_sparsify,
        folder=_module_folder,
        rules=frozenset({"topk"}),
        view="mlp_in",
        two_widths=False,
        rounds=lambda _, about: about.is_autoencoder,
        caveat=caveat,
    ),
    "dictionary-learning": Writer(
        "dictionary-learning",
        write_dictionary_learning,
        folder=lambda about, _dict_size, _l0: f"dictionary_learning/layer{about.layer:02d}/trainer_0",
        rules=frozenset({"topk", "batchtopk", "jumprelu"}),
        skip=False,
        two_widths=False,
        rounds=lambda transcoder, _: transcoder.rule.name != "jumprelu",
    ),
    "circuit-tracer": Writer(
        "circuit-tracer",
        write_circuit_tracer,
        folder=lambda _about, _dict_size, _l0: "circuit_tracer",
        rules=frozenset({"jumprelu"}),
        view="ln2_normalized",
        two_widths=False,
        autoencoders=False,
        frame=frame_circuit_tracer,
    ),
    "gemma-scope": Writer(
        "gemma-scope",
        write_gemma_scope,
        folder=lambda about, dict_size, l0: f"gemma_scope/{folder_of(about.layer, dict_size, l0)}",
        rules=frozenset({"jumprelu"}),
        view="ln2_normalized",
        skip=False,
        autoencoders=False,
    ),
}


def read_foreign(path: Path, wanted: Wanted) -> Transcoder:
    """The transcoder at ``path``, in whichever of the layouts it is.

    UsageError: there is none. DamagedError: the files do not fit their layout. MismatchError: another width, layer or
    convention.
    """
    return read_named(path, wanted)[1]


def files_of(name: str, path: Path, wanted: Wanted) -> list[Path]:
    """The files that a dictionary of this layout at ``path`` consists of."""
    found = FORMATS[name].find(path, wanted)
    assert found is not None, "it was found before"
    if found.is_dir():
        return sorted(file for file in (*found.glob("*"), *found.glob("checkpoints/final.*")) if file.is_file())
    return [found]


def read_named(path: Path, wanted: Wanted) -> tuple[str, Transcoder]:
    """The same, after the name of its layout."""
    for name, layout in FORMATS.items():
        found = layout.find(path, wanted)
        if found is not None:
            return name, _read(layout, found, wanted)
    raise AssertionError("the last layout refuses what none knows")


def _read(layout: Format, found: Path, wanted: Wanted) -> Transcoder:
    """``layout.read``; adds the remedy for damaged files."""
    try:
        return layout.read(found, wanted)
    except DamagedError as error:
        if error.remedy:
            raise
        remedy = "Fetch it again, or write it again with its own tool."
        raise DamagedError(error.what, where=error.where, remedy=remedy) from error
