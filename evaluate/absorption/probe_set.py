"""The first-letter probe cache: words' activations, harvested once, to score absorption with no language model.

A folder that ``harvest --probe first-letter`` writes:

    probe.safetensors   source (words, d_source), target (words, d_target), letter (words,) 0..25,
                        split (words,) 0 train, 1 test
    probe.json          version, kind, words, prompt, site_source, site_target, model, model_parameters, layer,
                        fingerprint (of the activation cache that it belongs to), ...; since version 2 also weights,
                        the size and hash of probe.safetensors, and a checksum of probe.json itself

Both files are checked before they are used. Those of version 1 have no checksum, and are read as they are.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from common.errors import DamagedError, DiskError, MismatchError
from common.hashing import hash_bytes
from common.run_layout import PROBE_FILE, PROBE_WEIGHTS_FILE
from common.sealed.document import check_checksum
from transcoder.formats.files.safe import read_json, read_tensors

VERSION = 2
"""Of the probe cache, the newest that is read."""
_READ_VERSIONS = (1, 2)
LETTERS = 26
"""a to z."""
DESCRIPTION = PROBE_FILE
"""Written last: a folder that has it holds a complete probe cache."""

_HARVEST_AGAIN = "Run 'nestcoder harvest --probe first-letter' for this layer again."


@dataclass(frozen=True)
class ProbeSet:
    """Activations at one word each, in fp32; scores are taken on ``test`` words. ``about`` is probe.json."""

    source: Float[Tensor, "words d_source"]
    target: Float[Tensor, "words d_target"]
    letter: Int[Tensor, " words"]
    test: Bool[Tensor, " words"]
    about: dict[str, Any]


def read_probe_set(folder: Path, *, fingerprint: str | None = None) -> ProbeSet:
    """The probe cache in ``folder``. UsageError: a file is missing. DamagedError: a file cannot be read or has wrong
    shapes. MismatchError: an unknown version or kind, or another cache's ``fingerprint``."""
    about = read_json(folder / PROBE_FILE)
    _check_identity(about, folder, fingerprint)
    if about["version"] > 1:
        _check_seal(about, folder)
    tensors = read_tensors(folder / PROBE_WEIGHTS_FILE, names={"source", "target", "letter", "split"})
    _check_tensors(tensors, about, folder)
    return ProbeSet(
        source=tensors["source"].float(),
        target=tensors["target"].float(),
        letter=tensors["letter"].long(),
        test=tensors["split"] == 1,
        about=about,
    )


def _check_identity(about: dict[str, Any], folder: Path, fingerprint: str | None) -> None:
    if about.get("version") not in _READ_VERSIONS or about.get("kind") != "first-letter":
        what = f"The probe cache is of version {about.get('version')!r} and kind {about.get('kind')!r}."
        raise MismatchError(
            what, where=folder, remedy=f"This release reads versions up to {VERSION}, kind 'first-letter'."
        )
    if fingerprint is not None and about.get("fingerprint") != fingerprint:
        what = "The probe cache belongs to another activation cache."
        raise MismatchError(what, where=folder, remedy=_HARVEST_AGAIN)


def _check_seal(about: dict[str, Any], folder: Path) -> None:
    """Raises DamagedError if one of the files was changed."""
    check_checksum(about, location=folder / PROBE_FILE, remedy=_HARVEST_AGAIN)
    weights = folder / PROBE_WEIGHTS_FILE
    if not weights.is_file():
        raise DamagedError("A file of the probe cache is missing.", where=weights, remedy=_HARVEST_AGAIN)
    try:
        data = weights.read_bytes()
    except OSError as error:
        raise DiskError(f"The file cannot be read: {error.strerror}.", where=weights) from error
    if about.get("weights") != {"bytes": len(data), "xxh3_128": hash_bytes(data)}:
        what = "The probe's activations were changed: their checksum differs."
        raise DamagedError(what, where=weights, remedy=_HARVEST_AGAIN)


def _check_tensors(tensors: dict[str, Tensor], about: dict[str, Any], folder: Path) -> None:
    problem = _problem_with(tensors, len(about["words"]) if isinstance(about.get("words"), list) else -1)
    if problem:
        raise DamagedError(f"The probe cache cannot be used: {problem}.", where=folder, remedy=_HARVEST_AGAIN)


def _problem_with(tensors: dict[str, Tensor], words: int) -> str | None:
    """What is wrong with the arrays, in words; None if nothing is."""
    letter = tensors["letter"]
    split = tensors["split"]
    if any(tensors[name].ndim != 2 or not tensors[name].is_floating_point() for name in ("source", "target")):
        return "source and target must be float matrices"
    if letter.ndim != 1 or split.ndim != 1 or letter.is_floating_point() or split.is_floating_point():
        return "letter and split must be integer vectors"
    if {words} != {len(tensor) for tensor in tensors.values()}:
        return f"probe.json names {words} words, the arrays have {sorted({len(tensor) for tensor in tensors.values()})}"
    if words == 0 or letter.min() < 0 or letter.max() >= LETTERS or split.max() > 1 or split.min() < 0:
        return "letters must lie in 0..25 and splits in 0..1"
    if not all(torch.isfinite(tensors[name]).all() for name in ("source", "target")):
        return "it holds NaN or infinity"
    return None
