"""What ``import nestcoder`` offers, in one place; ``nestcoder/__init__.py`` imports it when a name is first asked for.

The names are the same from a checkout and from an installed wheel, whose stages lie below ``nestcoder``
(``build_hook.py``). docs/python.md shows each at work.
"""

from pathlib import Path

from cache.reader import CacheReader
from common.errors import NestcoderError
from nestcoder.config import PipelineSettings, load_settings
from nestcoder.stages import run_evaluate, run_harvest, run_harvest_probe, run_train
from transcoder.formats.native import load_transcoder
from transcoder.transcoder import Transcoder

__all__ = [
    "CacheReader",
    "NestcoderError",
    "PipelineSettings",
    "Transcoder",
    "load_settings",
    "load_transcoder",
    "open_cache",
    "run_evaluate",
    "run_harvest",
    "run_harvest_probe",
    "run_train",
]


def open_cache(path: str | Path) -> CacheReader:
    """The activation cache in a folder, or at a URL that fsspec knows (``s3://bucket/gpt2/layer08/cache``).

        rows = nestcoder.open_cache("runs/gpt2/layer08/cache").split("held_out").rows(slice(0, 100))
        rows.source, rows.target  # two tensors, (100, width)

    Raises UsageError where there is no finished cache, DamagedError and MismatchError.
    """
    return CacheReader.open(path)
