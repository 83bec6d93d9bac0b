"""How a feature formed: the samples that a training wrote (``train.record.activation_samples``), with their text."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.reader import CacheReader
from common.errors import DamagedError, UsageError
from common.sealed.document import check_checksum
from common.sealed.tensors import FileSeal, read_tensors
from evaluate.features.contexts import text_of
from evaluate.features.text.words import speller_of
from train.record.activation_samples import NO_ROW, SAMPLES_FOLDER
from transcoder.formats.files.safe import read_json

_REMEDY = "Train again with --fresh, or remove the folder: nothing else depends on it."


@dataclass(frozen=True)
class Snapshot:
    """A feature at one step: rows on which it fired, its largest value, and its samples, the strongest first."""

    step: int
    firings: int
    largest: float
    samples: list[dict[str, Any]]


def history_of(run: Path, reader: CacheReader, feature: int) -> list[Snapshot]:
    """The feature at every step that samples were written at, earliest first.

    Raises UsageError where a run has none, DamagedError for altered files.
    """
    found = list(_steps(run / SAMPLES_FOLDER))
    if not found:
        remedy = "Train with log.activation_samples.every above 0 and below the number of steps."
        raise UsageError("This training wrote no activation samples.", where=run, remedy=remedy)
    return [_snapshot(about, arrays, reader, feature) for about, arrays in found]


def _steps(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    for path in sorted(folder.glob("step-*.json")):
        about = read_json(path)
        check_checksum(about, where=path, remedy=_REMEDY)
        arrays = read_tensors(path.with_suffix(".safetensors"), FileSeal.parse(about.get("arrays"), where=path))
        yield about, {name: array.numpy() for name, array in arrays.items()}


def _snapshot(about: dict[str, Any], arrays: dict[str, np.ndarray], reader: CacheReader, feature: int) -> Snapshot:
    if feature >= len(arrays["firings"]):
        raise UsageError(f"There is no feature {feature}: the transcoder has {len(arrays['firings']):,}, from 0.")
    rows = arrays["sample_row"][feature]
    values = arrays["sample_value"][feature]
    split = reader.split("held_out")
    if rows.max(initial=NO_ROW) >= len(split):
        what = "The samples name rows that this cache does not have."
        raise DamagedError(what, where=reader.path, remedy="Name the cache that the run was trained on.")
    width = int(about["settings"]["context_size"])
    samples = [
        {"value": float(value), **_context(reader, int(row), width)}
        for row, value in zip(rows, values, strict=True)
        if row != NO_ROW
    ]
    return Snapshot(int(about["step"]), int(arrays["firings"][feature]), float(arrays["largest"][feature]), samples)


def _context(reader: CacheReader, row: int, width: int) -> dict[str, Any]:
    """The tokens on either side, as far as document and context go."""
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
    return json.loads(json.dumps([vars(one) for one in history]))
