"""A cross-layer transcoder and the caches that it was trained on, opened together."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.config import CacheSettings
from cache.open import open_cache
from cache.reader import CacheReader
from cache.stacked import stacked
from common.errors import MismatchError, UsageError
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.formats.cross_layer import load_cross_layer
from transcoder.transcoder import Transcoder


@dataclass(frozen=True)
class JointSource:
    """Where a cross-layer transcoder lies, and the caches of its layers."""

    caches: Mapping[int, Path]
    transcoder: Path


@dataclass(frozen=True)
class Opened:
    """``readers`` are its layers' caches, in their order, and ``stacked_reader`` reads those side by side."""

    dictionary: CrossLayerTranscoder
    readers: tuple[CacheReader, ...]
    stacked_reader: CacheReader

    @staticmethod
    def from_source(source: JointSource, cache_settings: CacheSettings | None, *, device: str) -> "Opened":
        """On ``device``. Raises MismatchError where it was trained on other caches, DamagedError for damaged files."""
        readers = open_readers(source.caches, cache_settings, device=device)
        stacked_reader = stacked(readers)
        dictionary = load_cross_layer(source.transcoder)
        check_caches(dictionary, stacked_reader, path=source.transcoder)
        return Opened(dictionary.on(device), readers, stacked_reader)


def open_readers(
    caches: Mapping[int, Path], cache_settings: CacheSettings | None, *, device: str
) -> tuple[CacheReader, ...]:
    """The caches, by ascending layer."""
    return tuple(open_cache(caches[layer], cache_settings, device=device) for layer in sorted(caches))


def check_caches(dictionary: CrossLayerTranscoder, stacked_reader: CacheReader, *, path: Path) -> None:
    """Raises MismatchError where it was trained on others than those of ``stacked_reader``."""
    trained_on = dictionary.config.get("cache_fingerprint")
    if trained_on != stacked_reader.fingerprint:
        what = f"The dictionary was trained on the caches {trained_on}, these are {stacked_reader.fingerprint}."
        raise MismatchError(what, where=path, remedy="Name the layers that it was trained on.")


def open_layer(
    folder: Path, cache: Path, cache_settings: CacheSettings | None, *, device: str
) -> tuple[CacheReader, Transcoder]:
    """A cache, and the features of the cross-layer transcoder in ``folder`` that read it, writing to its layer alone.

    Raises UsageError for a dictionary without that layer, or one that selects over layers; MismatchError where it was
    trained on another cache of the layer.
    """
    reader = open_cache(cache, cache_settings, device=device)
    dictionary = load_cross_layer(folder)
    layer = int(reader.identity["layer"])
    if layer not in dictionary.layers:
        raise UsageError(f"The dictionary has no layer {layer}; it has {list(dictionary.layers)}.", where=folder)
    if dictionary.over_layers:
        what = "The dictionary selects over all of its layers: which features of one fire, its rows alone do not say."
        raise UsageError(what, where=folder, remedy="Train with train.select_over: layer.")
    number = dictionary.layers.index(layer)
    trained_on = dictionary.config["cache_fingerprints"][number]
    if trained_on != reader.fingerprint:
        what = f"Layer {layer} of the dictionary was trained on the cache {trained_on}, this is {reader.fingerprint}."
        raise MismatchError(what, where=folder)
    return reader, dictionary.within(number).on(device)
