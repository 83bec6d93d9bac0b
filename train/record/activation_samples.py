"""What features fire on during training: every so many steps the strongest firings of each, in the run's folder.

    activation_samples/step-0001000.safetensors    firings, largest, sample_row, sample_value: a row a feature
    activation_samples/step-0001000.json           step, tokens, settings; size and hash of the other file; written last
    activation_samples/layer08/step-0001000...     of a cross-layer transcoder: the features that read layer 8

They come from the first held-out rows, with the rule for evaluation, in the cache's units. The training does not depend
on them, and a step that is repeated after a kill writes the same bytes. The text is not stored: ``nestcoder features
history`` finds it by the row number.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64

from cache.reader import CacheReader, View
from common import disk
from common.sealed.document import with_checksum
from common.sealed.tensors import write_tensors
from train.config import SampleSettings
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.sparse_code import SparseCode
from transcoder.transcoder import Transcoder

SAMPLES_FOLDER = "activation_samples"
NO_ROW = -1
"""In ``sample_row``, where a feature has fewer samples."""
_VERSION = 1
"""Of the two files."""
_BATCH_ROWS = 2048
"""Rows that are read and encoded at a time."""

_Entries = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row, feature and value of what fires, each of one dimension."""
_NOTHING: _Entries = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32))

CodesOf = Callable[[Sequence[Float[torch.Tensor, "rows d_source"]]], Sequence[SparseCode]]
"""The sources of all layers to what fires in each."""


def sample_name(step: int) -> str:
    """The two files' name without their endings; names ascend with the steps."""
    return f"step-{step:07d}"


def samples_folder(run: Path, layer: int | None = None) -> Path:
    """Where a run's samples lie; of a cross-layer transcoder, those of the features that read ``layer``."""
    folder = run / SAMPLES_FOLDER
    return folder if layer is None else folder / f"layer{layer:02d}"


def write_samples(
    folder: Path, arrays: Mapping[str, np.ndarray], *, step: int, tokens: int, settings: SampleSettings
) -> None:
    """Write one step's samples into ``folder``."""
    stem = folder / sample_name(step)
    seal = write_tensors(stem.with_suffix(".safetensors"), {name: torch.from_numpy(arrays[name]) for name in arrays})
    about: dict[str, Any] = {"version": _VERSION, "step": step, "tokens": tokens, "arrays": seal.as_dict()}
    about["settings"] = settings.model_dump(mode="json")
    disk.write_file(stem.with_suffix(".json"), (json.dumps(with_checksum(about), indent=1) + "\n").encode())


@torch.no_grad()
def sample_firings(transcoder: Transcoder, reader: CacheReader, settings: SampleSettings) -> dict[str, np.ndarray]:
    """``firings`` and ``largest`` of every feature over the rows, and the row and value of its samples; -1 and 0 where
    there are fewer.

    For each feature, ``samples_per_feature`` of its firings above the threshold are drawn, and the strongest
    ``samples_saved`` of these are kept.
    """
    (found,) = _firings(
        [reader],
        lambda sources: [transcoder.sparse_code(sources[0])],
        rows=settings.rows,
        view=transcoder.source_view,
        device=transcoder.W_enc.device,
    )
    return _sampled(found, transcoder.dict_size, settings)


@torch.no_grad()
def sample_layers(
    dictionary: CrossLayerTranscoder, readers: Sequence[CacheReader], settings: SampleSettings
) -> dict[int, dict[str, np.ndarray]]:
    """The same of the features that read each layer, by layer. ``readers`` are the layers' caches, of the same rows."""
    first = dictionary.piece(0)
    found = _firings(readers, dictionary.codes, rows=settings.rows, view=first.source_view, device=first.W_enc.device)
    named = zip(dictionary.layers, found, strict=True)
    return {layer: _sampled(entries, dictionary.dict_size, settings) for layer, entries in named}


def _sampled(entries: _Entries, size: int, settings: SampleSettings) -> dict[str, np.ndarray]:
    """The arrays of one layer's ``size`` features."""
    row, feature, value = entries
    largest = np.zeros(size, dtype=np.float32)
    np.maximum.at(largest, feature, value)

    wanted = value > settings.threshold
    if settings.features is not None:
        wanted &= np.isin(feature, np.array(settings.features, dtype=np.int64))
    row, feature, value, firings = row[wanted], feature[wanted], value[wanted], np.bincount(feature, minlength=size)
    drawn = _first_of_each(feature, _hashes(feature, row), settings.samples_per_feature)
    kept = drawn[_first_of_each(feature[drawn], -value[drawn], settings.samples_saved)]
    rank = _rank_in_feature(feature[kept])
    rows = np.full((size, settings.samples_saved), NO_ROW, dtype=np.int32)
    values = np.zeros(rows.shape, dtype=np.float32)
    rows[feature[kept], rank] = row[kept]
    values[feature[kept], rank] = value[kept]
    return {"firings": firings.astype(np.int32), "largest": largest, "sample_row": rows, "sample_value": values}


def _firings(
    readers: Sequence[CacheReader], codes_of: CodesOf, *, rows: int, view: View, device: torch.device
) -> list[_Entries]:
    """Of every layer, everything that fires on the first held-out rows, by row."""
    splits = [reader.split("held_out") for reader in readers]
    total = min(rows, len(splits[0]))
    columns: list[list[_Entries]] = [[_NOTHING] for _ in readers]
    for start in range(0, total, _BATCH_ROWS):
        taken = [split.rows(slice(start, min(start + _BATCH_ROWS, total)), view=view) for split in splits]
        ordinary = np.flatnonzero(splits[0].is_ordinary(taken[0].tokens))
        codes = codes_of([layer.source[torch.from_numpy(ordinary)].to(device) for layer in taken])
        for column, code in zip(columns, codes, strict=True):
            fires = code.values > 0
            row = ordinary[code.rows()[fires].cpu().numpy()] + start
            column.append((row, code.features[fires].cpu().numpy().astype(np.int64), code.values[fires].cpu().numpy()))
    return [_concatenated(column) for column in columns]


def _concatenated(batches: Sequence[_Entries]) -> _Entries:
    """The entries of all batches, in their order."""
    row, feature, value = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return row, feature, value


def _first_of_each(feature: Int[np.ndarray, " firings"], key: np.ndarray, count: int) -> Int[np.ndarray, " some"]:
    """Which firings have the ``count`` smallest keys of their feature, feature by feature, smallest first."""
    order = np.lexsort((key, feature))
    return order[_rank_in_feature(feature[order]) < count]


def _rank_in_feature(feature: Int[np.ndarray, " firings"]) -> Int[np.ndarray, " firings"]:
    """The number of firings of the same feature before each one; equal features must be neighbours."""
    begins = np.flatnonzero(np.diff(feature, prepend=-1))
    return np.arange(len(feature)) - np.repeat(begins, np.diff(begins, append=len(feature)))


def _hashes(feature: Int[np.ndarray, " firings"], row: Int[np.ndarray, " firings"]) -> UInt64[np.ndarray, " firings"]:
    """A number of each (feature, row) that looks random and is the same in every run (SplitMix64's finalizer)."""
    mixed = feature.astype(np.uint64) << np.uint64(32) | row.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ mixed >> np.uint64(shift)) * np.uint64(factor)
    return mixed ^ mixed >> np.uint64(31)
