"""Before evidence is taken: rows, features, bytes and minutes, from arithmetic and timed blocks. It writes nothing.

Of F features with C contexts of at most T tokens each, and E firings,

    bytes     R a row + A F of arrays, 8 bytes a firing shown, and the pages: P F + Q F C T
    seconds   the blocks (timed), F rows of two matrices of cosines (timed), the logits (timed), and S F + U E

F C T is what is shown where every feature fires in enough documents: of rare features there is less.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache.config import CacheSettings
from cache.reader import CacheReader
from cache.storage.unembedding import Unembedding
from common import disk
from common.errors import CapacityError
from common.progress import Silent
from common.units import in_bytes
from evaluate.features.code import Errors
from evaluate.features.collect import Written, block_starts, encode_part, rows_taken
from evaluate.features.config import FeatureSettings
from evaluate.features.effects.logits import logit_effects
from evaluate.features.relations import nearest_by_cosine
from evaluate.features.run import open_both, read_logits
from transcoder.transcoder import Transcoder

_TIMED_BLOCKS = 2
"""Blocks of rows that are encoded and timed."""
_TIMED_FEATURES = 256
"""Rows of the dictionary whose neighbours and logits are timed: a matrix product that is large enough to be fast."""
_ROW_BYTES = 12
"""Of the text: token, document and position of a row."""
_ARRAY_BYTES = 2200
"""Of a feature in evidence.safetensors, besides its entries and contexts."""
_PAGE_BYTES = 1000
"""Of a feature's page, besides its tokens."""
_TOKEN_BYTES = 3
"""Measured on the embedded models: 2.7 a token shown, pages being compressed and written in base64."""
_FEATURE_SECONDS = 0.006
_FIRING_SECONDS = 1e-6
"""Of a processor: 1,536 features with 1.9 million firings took 11 s beside the replay and the start of Python."""


@dataclass(frozen=True)
class FeaturesPlan:
    """What collecting the evidence will need. ``l0`` is of the timed blocks; bytes are of all files."""

    folder: str
    device: str
    split: str
    rows: int
    features: int
    l0: float
    bytes_at_most: int
    free_disk_bytes: int
    seconds: float


@dataclass(frozen=True)
class Replay:
    """How long the encoding of all rows will take, and how many features fire on a token."""

    seconds: float
    l0: float


def plan_features(
    *,
    cache: Path,
    transcoder: Path,
    out: Path,
    settings: FeatureSettings,
    device: str,
    lm: str | None,
    force: bool,
    cache_settings: CacheSettings | None = None,
) -> FeaturesPlan:
    """What ``features_of_layer`` would need. Raises what it would raise before its first row, and CapacityError if the
    disk may be too small."""
    reader, trained = open_both(
        cache, transcoder, device=device, force=force, progress=Silent(), cache_settings=cache_settings
    )
    return plan_of(reader, trained, read_logits(lm, reader, trained), out=out, settings=settings)


def plan_of(
    reader: CacheReader,
    trained: Transcoder,
    unembedding: Unembedding | None,
    *,
    out: Path,
    settings: FeatureSettings,
    errors: Errors | None = None,
    written: Written | None = None,
) -> FeaturesPlan:
    """The same for what is open already; ``errors`` and ``written`` as in ``evaluate.features.collect``."""
    rows = rows_taken(reader, settings)
    replay = timed_replay(reader, trained, settings, errors)
    firings = replay.l0 * rows
    size = bytes_at_most(settings, features=trained.dict_size, rows=rows, l0=replay.l0)
    if size > disk.free_bytes(out):
        problem = f"The evidence may need {in_bytes(size)}, but {in_bytes(disk.free_bytes(out))} are free."
        raise CapacityError(problem, where=out, remedy="Free some space, or show less (features.top_contexts).")
    return FeaturesPlan(
        folder=str(out),
        device=str(trained.W_dec.device),
        split=settings.split,
        rows=rows,
        features=trained.dict_size,
        l0=replay.l0,
        bytes_at_most=size,
        free_disk_bytes=disk.free_bytes(out),
        seconds=replay.seconds
        + _relations_seconds(trained, settings, unembedding, written)
        + _FEATURE_SECONDS * trained.dict_size
        + _FIRING_SECONDS * firings,
    )


def timed_replay(
    reader: CacheReader, trained: Transcoder, settings: FeatureSettings, errors: Errors | None = None
) -> Replay:
    """Encode the first blocks, and assume that the others take the same time."""
    starts = block_starts(reader, settings)
    timed = starts[:_TIMED_BLOCKS]
    began = time.perf_counter()
    blocks = encode_part(reader, trained, settings, timed, progress=Silent(), errors=errors)
    seconds = (time.perf_counter() - began) * len(starts) / max(1, len(timed))
    tokens = sum(block.tokens for block in blocks)
    return Replay(seconds=seconds, l0=sum(len(block.row) for block in blocks) / max(1, tokens))


def bytes_at_most(settings: FeatureSettings, *, features: int, rows: int, l0: float) -> int:
    """The bytes of all files of the evidence and its pages, if every context of every feature is found."""
    contexts = (
        settings.top_contexts
        + settings.intervals * settings.interval_contexts
        + settings.uniform_contexts
        + settings.silent_contexts
    )
    shown = features * contexts * (2 * settings.context_tokens + 1)
    # A window has the firing that it is about, and what the feature does beside it: frequent features do more.
    firings = 2 * (features * contexts + shown * l0 / features)
    arrays = _ROW_BYTES * rows + _ARRAY_BYTES * features + 8 * firings
    return int(arrays + _PAGE_BYTES * features + _TOKEN_BYTES * shown)


def _relations_seconds(
    trained: Transcoder, settings: FeatureSettings, unembedding: Unembedding | None, written: Written | None
) -> float:
    """The seconds for neighbours by decoder and encoder, and for logits, from those of some features."""
    timed = trained.W_dec[:_TIMED_FEATURES]
    share = trained.dict_size / len(timed)
    # Each feature is compared with all: the timed ones only with each other.
    seconds = 2 * share**2 * _seconds(lambda: nearest_by_cosine(timed, settings.relatives))
    if unembedding:
        stream = written.stream[:_TIMED_FEATURES] if written else timed
        seconds += share * _seconds(lambda: logit_effects(stream, unembedding, settings.logits))
    return seconds


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
