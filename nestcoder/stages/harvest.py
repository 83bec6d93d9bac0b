"""From text to caches: ``nestcoder.run_harvest``, and the prompts of the absorption metric."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from common.distributed import read_ranks
from common.processes.garbage import no_collections
from common.progress import SILENT, Progress
from nestcoder.config import PipelineSettings
from nestcoder.stages.folders import folders_of

if TYPE_CHECKING:
    from harvest.request import HarvestRequest


def run_harvest(
    settings: PipelineSettings,
    layers: Sequence[int],
    *,
    device: str = "auto",
    fresh: bool = False,
    progress: Progress = SILENT,
) -> dict[int, dict[str, Any]]:
    """Harvest ``layers`` in one pass over the text; returns what was done, by layer (cache, rows, seconds, proof, ...).

    ``fresh`` removes the caches of an earlier harvest first. Raises errors of ``common/errors.py``.

        nestcoder.run_harvest(nestcoder.load_settings("pipeline.yaml"), [4, 8])[8]["cache"]
    """
    if progress:
        progress.note("Importing the libraries that run language models.")
    with no_collections():
        from harvest.run import harvest_layers

    return harvest_layers(harvest_request(settings, layers, device), fresh=fresh, progress=progress)


def harvest_request(settings: PipelineSettings, layers: Sequence[int], device: str = "auto") -> "HarvestRequest":
    """The request of the settings for the harvest stage, and this process's share of it."""
    from harvest.request import HarvestRequest

    ranks = read_ranks()
    return HarvestRequest(
        model=settings.model,
        folders={layer: folders_of(settings, layer).cache for layer in layers},
        settings=settings.harvest,
        cache=settings.cache,
        device=ranks.device(device),
        rank=ranks.rank,
        world=ranks.world,
    )


def run_harvest_probe(
    settings: PipelineSettings,
    layers: Sequence[int],
    *,
    device: str = "auto",
    fresh: bool = False,
    progress: Progress = SILENT,
) -> dict[int, dict[str, Any]]:
    """Harvest the first-letter prompts for each layer's finished cache, for the absorption metric."""
    from harvest.probe.stage import harvest_probe

    folders = {layer: folders_of(settings, layer).probe() for layer in layers}
    request = harvest_request(settings, layers, device)
    return harvest_probe(request, folders=folders, fresh=fresh, progress=progress)
