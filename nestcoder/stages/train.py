"""From caches to transcoders: ``nestcoder.run_train``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.processes.garbage import no_collections
from common.progress import SILENT, Progress
from common.run_layout import joint_folders
from nestcoder.config import PipelineSettings
from nestcoder.stages.folders import folders_of, joined_processes


def run_train(
    settings: PipelineSettings,
    layers: Sequence[int],
    *,
    name: str = "main",
    device: str = "auto",
    fresh: bool = False,
    progress: Progress = SILENT,
) -> dict[int, dict[str, Any]]:
    """Train a transcoder (and those of the settings' sweep) on each layer's cache; returns its config.json by layer.

    A cross-layer transcoder is trained once for all ``layers``; its config.json is returned for each of them.

        nestcoder.run_train(nestcoder.load_settings(overrides=["train.top_k=32"]), [8], name="k32")
    """
    with no_collections():
        from train.run import train_layers

    results: dict[int, dict[str, Any]] = {}
    with joined_processes(device) as own_device:
        for group, out in trainings(settings, layers, name):
            config = train_layers(
                caches=[folders_of(settings, layer).cache for layer in group],
                cache_settings=settings.cache,
                out=out,
                settings=settings.train,
                device=own_device,
                fresh=fresh,
                progress=progress,
                log=settings.log,
            )
            results |= dict.fromkeys(group, config)
    return results


def trainings(settings: PipelineSettings, layers: Sequence[int], name: str) -> list[tuple[list[int], Path]]:
    """The trainings of the settings: the layers and the folder of each.

    Transcoders of several layers are trained one after another: each cache is read once in any case, and only one
    dictionary is in memory.
    """
    if settings.train.kind == "cross-layer":
        ordered = sorted(set(layers))
        return [(ordered, joint_folders(Path(settings.runs), settings.model, ordered).transcoder(name))]
    return [([layer], folders_of(settings, layer).transcoder(name)) for layer in layers]
