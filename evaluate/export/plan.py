"""Before an export: features, bytes and seconds, from the pages of a few features made as the export makes them.

delphi's cache is not made of evidence; its size is arithmetic, and its time that of a few timed blocks:

    bytes     8 a row and file for the tokens; 14 a firing at most: three numbers of a place, and a value
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.config import CacheSettings
from common.progress import Silent
from evaluate.export.circuit_tracer import circuit_tracer_page
from evaluate.export.delphi import SPLITS
from evaluate.export.files import as_line, packed
from evaluate.export.neuronpedia import Decoder, activation_records, feature_record
from evaluate.export.plain import table_bytes
from evaluate.export.replayed import open_dictionary
from evaluate.features.collect import rows_taken
from evaluate.features.config import FeatureSettings
from evaluate.features.evidence import Evidence
from evaluate.features.plan import timed_replay
from evaluate.features.text.page import feature_page

_TRIED = 64
"""Features whose pages are made: evenly over all, so that every prefix has its share."""


@dataclass(frozen=True)
class ExportPlan:
    """What one layer's export will take. ``features`` are those that fire; ``bytes_about`` is of all files."""

    to: str
    folder: str
    layer: int
    rows: int
    features: int
    bytes_about: int
    seconds: float


def plan_pages(evidence: Evidence, decoder: Decoder | None, to: str, out: Path) -> ExportPlan:
    """What an export of evidence to any format but delphi's will take; ``decoder`` is for Neuronpedia's."""
    firing = np.flatnonzero(evidence.arrays["firings"])
    tried = firing[np.linspace(0, len(firing) - 1, min(_TRIED, len(firing))).astype(np.int64)].tolist()
    began = time.perf_counter()
    size = _neuronpedia(evidence, decoder, tried) if to == "neuronpedia" else _FORMATS[to](evidence, tried)
    seconds = time.perf_counter() - began
    scale = len(firing) / max(1, len(tried))
    return ExportPlan(
        to=to,
        folder=str(out),
        layer=evidence.layer,
        rows=int(evidence.head["rows"]),
        features=len(firing),
        bytes_about=int(size * scale),
        seconds=seconds * scale,
    )


def plan_delphi(
    *,
    cache: Path,
    transcoder: Path,
    layer: int,
    out: Path,
    settings: FeatureSettings,
    device: str,
    cache_settings: CacheSettings | None = None,
) -> ExportPlan:
    """What ``delphi_of_layer`` will take. Raises UsageError, DamagedError, MismatchError."""
    reader, trained = open_dictionary(
        cache, transcoder, device=device, progress=Silent(), cache_settings=cache_settings
    )
    rows = rows_taken(reader, settings)
    replay = timed_replay(reader, trained, settings)
    return ExportPlan(
        to="delphi",
        folder=str(out),
        layer=layer,
        rows=rows,
        features=trained.dict_size,
        bytes_about=int(8 * SPLITS * rows + 14 * replay.l0 * rows),
        seconds=replay.seconds,
    )


def _circuit_tracer(evidence: Evidence, features: list[int]) -> int:
    return sum(len(packed(as_line(circuit_tracer_page(evidence, feature)))) for feature in features)


def _jsonl(evidence: Evidence, features: list[int]) -> int:
    return len(packed(b"".join(as_line(feature_page(evidence, feature)) for feature in features)))


def _neuronpedia(evidence: Evidence, decoder: Decoder | None, features: list[int]) -> int:
    lines = b"".join(as_line(feature_record(evidence, decoder, feature, "")) for feature in features)
    contexts = b"".join(as_line(record) for feature in features for record in activation_records(evidence, feature, ""))
    return len(packed(lines)) + len(packed(contexts))


def _parquet(evidence: Evidence, features: list[int]) -> int:
    return len(table_bytes(evidence, features))


_FORMATS: dict[str, Callable[[Evidence, list[int]], int]] = {
    "circuit-tracer": _circuit_tracer,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
