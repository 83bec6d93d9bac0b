"""How a feature formed: the samples that a training wrote (``train.record.activation_samples``), with their text."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from cache.reader import CacheReader
from common.errors import DamagedError, UsageError
from common.sealed.document import check_checksum
from common.sealed.tensors import FileSeal, read_tensors
from evaluate.features.contexts import text_of
from evaluate.features.text.words import speller_of
from evaluate.features.tokens import NO_TOKEN
from train.record.activation_samples import NO_ROW, samples_folder
from transcoder.formats.files.safe import read_json

_REMEDY = "Train again with --fresh, or remove the folder: nothing else needs it."
_SHOWN_STEPS = 8
"""Steps on a page: the first, the last, and others evenly between."""
_SHOWN_SAMPLES = 3
"""Samples of every step that a page shows."""


@dataclass(frozen=True)
class Snapshot:
    """A feature at one step: rows on which it fired, its largest value, and its samples, the strongest first."""

    step: int
    firings: int
    largest: float
    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class Formation:
    """All features at a few steps of their training: ``rows`` were looked at, and values above ``threshold`` counted.

    ``arrays``: formed_step (steps); formed_firings and formed_largest (features, steps); formed_token (features, steps,
    samples), the tokens of the strongest samples, -1 where there are fewer.
    """

    rows: int
    threshold: float
    arrays: dict[str, np.ndarray]


def formation_of(run: Path, reader: CacheReader, layer: int | None = None) -> Formation | None:
    """How the features of a run formed, of a cross-layer transcoder those that read ``layer``; None where its training
    wrote no samples. Raises DamagedError."""
    paths = sorted(samples_folder(run, layer).glob("step-*.json"))
    if not paths:
        return None
    shown = np.unique(np.linspace(0, len(paths) - 1, _SHOWN_STEPS).round().astype(np.int64))
    found = [_read(paths[index]) for index in shown.tolist()]
    split = reader.split("held_out")
    rows = np.stack([_checked_rows(arrays, reader)[:, :_SHOWN_SAMPLES] for _, arrays in found], axis=1)
    settings = found[-1][0]["settings"]
    return Formation(
        rows=min(int(settings["rows"]), len(split)),
        threshold=float(settings["threshold"]),
        arrays={
            "formed_step": np.array([about["step"] for about, _ in found]),
            "formed_firings": np.stack([arrays["firings"] for _, arrays in found], axis=1),
            "formed_largest": np.stack([arrays["largest"] for _, arrays in found], axis=1),
            "formed_token": np.where(rows == NO_ROW, NO_TOKEN, split.tokens[np.maximum(rows, 0)]),
        },
    )


def history_of(run: Path, reader: CacheReader, feature: int, layer: int | None = None) -> list[Snapshot]:
    """The feature at every step that samples were written at, earliest first; of a cross-layer transcoder, the one of
    those that read ``layer``.

    Raises UsageError where a run has none, DamagedError for altered files.
    """
    found = list(_steps(samples_folder(run, layer)))
    if not found:
        remedy = "Train with log.activation_samples.every above 0 and below the number of steps."
        raise UsageError("This training wrote no activation samples.", where=run, remedy=remedy)
    return [_snapshot(about, arrays, reader, feature) for about, arrays in found]


def _steps(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    for path in sorted(folder.glob("step-*.json")):
        yield _read(path)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One step's two files."""
    about = read_json(path)
    check_checksum(about, location=path, remedy=_REMEDY)
    arrays = read_tensors(path.with_suffix(".safetensors"), FileSeal.parse(about.get("arrays"), location=path))
    return about, {name: array.numpy() for name, array in arrays.items()}


def _checked_rows(arrays: dict[str, np.ndarray], reader: CacheReader) -> Int[np.ndarray, "features samples"]:
    """The rows of all samples. Raises DamagedError for rows that the cache does not have."""
    if arrays["sample_row"].max(initial=NO_ROW) >= len(reader.split("held_out")):
        what = "The samples refer to rows that this cache does not have."
        raise DamagedError(what, where=reader.path, remedy="Give the cache that the run was trained on.")
    return arrays["sample_row"]


def _snapshot(about: dict[str, Any], arrays: dict[str, np.ndarray], reader: CacheReader, feature: int) -> Snapshot:
    if feature >= len(arrays["firings"]):
        raise UsageError(f"There is no feature {feature}: the transcoder has {len(arrays['firings']):,}, from 0.")
    rows = _checked_rows(arrays, reader)[feature]
    values = arrays["sample_value"][feature]
    width = int(about["settings"]["context_size"])
    samples = [
        {"value": float(value), **_context(reader, int(row), width)}
        for row, value in zip(rows, values, strict=True)
        if row != NO_ROW
    ]
    return Snapshot(int(about["step"]), int(arrays["firings"][feature]), float(arrays["largest"][feature]), samples)


def _context(reader: CacheReader, row: int, width: int) -> dict[str, Any]:
    """The tokens before and after, within the same document and context."""
    split = reader.split("held_out")
    start = max(0, row - width)
    near = slice(start, min(len(split), row + width + 1))
    tokens = split.tokens[near]
    text = text_of(tokens, split.document[near], split.position[near], split.is_ordinary(tokens))
    first, end = text.window(row - start, width)
    spell = speller_of(reader.arrays)
    words = [spell(int(token)) for token in tokens[first:end]]
    return {"row": row, "document": int(split.document[row]), "at": row - start - first, "tokens": words}


def as_data(history: list[Snapshot]) -> list[dict[str, Any]]:
    """Plain values, for JSON."""
    return json.loads(json.dumps([vars(snapshot) for snapshot in history]))
