"""What an export needs that evidence does not keep: the code of all rows, made again from the cache."""

from pathlib import Path

import numpy as np

from cache.config import CacheSettings
from cache.reader import CacheReader
from common.device import choose_device
from common.progress import Progress
from evaluate.export.delphi import delphi_files, hookpoint
from evaluate.export.files import Files
from evaluate.features.code import join
from evaluate.features.collect import block_starts, encode_part, rows_taken
from evaluate.features.config import FeatureSettings
from evaluate.features.run import open_both
from evaluate.joint.opened import open_layer
from transcoder.formats.native import CONFIG_FILE, CROSS_LAYER, read_config
from transcoder.transcoder import Transcoder


def delphi_of_layer(
    *,
    cache: Path,
    transcoder: Path,
    settings: FeatureSettings,
    device: str,
    progress: Progress,
    cache_settings: CacheSettings | None = None,
) -> Files:
    """delphi's latent cache of a trained transcoder, or of the features of a cross-layer one that read this cache.

    Raises UsageError, DamagedError, MismatchError.
    """
    reader, trained = open_dictionary(
        cache, transcoder, device=device, progress=progress, cache_settings=cache_settings
    )
    blocks = encode_part(reader, trained, settings, block_starts(reader, settings), progress=progress)
    view = reader.split(settings.split)
    rows = rows_taken(reader, settings)
    identity = reader.identity
    dataset = identity.get("dataset") or {}
    yield from delphi_files(
        join(blocks),
        view.tokens[:rows],
        view.position[:rows],
        dict_size=trained.dict_size,
        context=int(identity.get("context") or np.max(view.position[:rows]) + 1),
        padding=int(min(reader.special_ids, default=0)),
        folder=hookpoint(int(identity["layer"]), identity.get("architecture")),
        config={
            "model_name": str(identity.get("model")),
            "dataset_repo": str(dataset.get("name") or dataset.get("kind") or ""),
            "dataset_split": settings.split,
            "dataset_name": "",
            "dataset_column": "text",
            "batch_size": 1,
        },
    )


def open_dictionary(
    cache: Path, folder: Path, *, device: str, progress: Progress, cache_settings: CacheSettings | None = None
) -> tuple[CacheReader, Transcoder]:
    """A cache and what reads it of the dictionary in ``folder``, of whatever kind, on the device."""
    if (folder / CONFIG_FILE).is_file() and read_config(folder).get("kind") == CROSS_LAYER:
        return open_layer(folder, cache, cache_settings, device=str(choose_device(device)))
    return open_both(cache, folder, device=device, force=False, progress=progress, cache_settings=cache_settings)
