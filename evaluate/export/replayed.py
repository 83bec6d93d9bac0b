"""What an export needs that evidence does not keep: the code of all rows, made again from the cache."""

from pathlib import Path

import numpy as np

from cache.config import CacheSettings
from cache.open import open_cache
from common.device import choose_device
from common.progress import Progress
from evaluate.export.delphi import delphi_files, hookpoint
from evaluate.export.files import Files
from evaluate.features.code import join
from evaluate.features.collect import block_starts, encode_part
from evaluate.features.config import FeatureSettings
from evaluate.reference import check_belongs
from transcoder.formats.native import load_transcoder


def delphi_of_layer(
    *,
    cache: Path,
    transcoder: Path,
    settings: FeatureSettings,
    device: str,
    progress: Progress,
    cache_settings: CacheSettings | None = None,
) -> Files:
    """delphi's latent cache of a trained transcoder. Raises DamagedError, MismatchError."""
    device_name = str(choose_device(device))
    reader = open_cache(cache, cache_settings, device=device_name)
    trained = load_transcoder(transcoder, progress=progress)
    check_belongs(trained, reader, where=transcoder, force=False)
    blocks = encode_part(reader, trained.to(device_name), settings, block_starts(reader, settings), progress=progress)
    view = reader.split(settings.split)
    rows = min(settings.rows, len(view))
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
