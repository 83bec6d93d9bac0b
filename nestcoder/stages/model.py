"""The stages that run the language model with dictionaries in it, as functions of the settings.

nestcoder.run_together(settings, [4, 8])     several layers spliced at once
nestcoder.run_finetune(settings, [8])        trained further inside the model
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.progress import SILENT, Progress
from common.run_layout import check_of_one_layer, finetune_folder, joint_folders, together_folder
from nestcoder.config import PipelineSettings
from nestcoder.stages.folders import folders_of, joined_processes, trained_layers
from nestcoder.stages.joint import is_cross_layer

if TYPE_CHECKING:
    from finetune.request import FinetuneRequest


def run_together(
    settings: PipelineSettings,
    layers: Sequence[int] = (),
    *,
    name: str = "main",
    device: str = "auto",
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Splice the transcoders ``name`` of several layers (without layers: of all trained ones) into the language model
    at once: cross-entropy, KL and the share of unchanged first choices, by prefix.

        nestcoder.run_together(settings, [4, 8])["language_model"]["per_prefix"][-1]["delta"]
    """
    from evaluate.spliced.all_layers import splice_all_layers

    check_of_one_layer(Path(settings.runs), settings.model, layers, name)
    with joined_processes(device) as own_device:
        chosen = list(layers) or trained_layers(settings, name)
        return splice_all_layers(
            caches={layer: folders_of(settings, layer).cache for layer in chosen},
            transcoders={layer: folders_of(settings, layer).transcoder(name) for layer in chosen},
            out=together_folder(Path(settings.runs), settings.model, name),
            settings=settings.evaluate,
            device=own_device,
            lm=settings.model,
            progress=progress,
            cache_settings=settings.cache,
        )


def run_finetune(
    settings: PipelineSettings,
    layers: Sequence[int],
    *,
    name: str = "main",
    result: str | None = None,
    device: str = "auto",
    fresh: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Fine-tune the transcoders ``name`` of these layers, or their cross-layer transcoder, inside the language model.

    All layers are spliced at once. The new dictionaries are the run ``result`` (``<name>-finetuned``); returns the
    metrics before and after.

        nestcoder.run_finetune(settings, [8])["language_model"]["closed_per_prefix"][-1]["delta"]
    """
    from finetune.run import finetune_layers

    with joined_processes(device) as own_device:
        request = finetune_request(settings, layers, name=name, result=result, device=own_device)
        return finetune_layers(request, fresh=fresh, progress=progress)


def finetune_request(
    settings: PipelineSettings, layers: Sequence[int], *, name: str, result: str | None, device: str
) -> "FinetuneRequest":
    """The request of the settings for fine-tuning. Raises UsageError for a cross-layer transcoder of other layers."""
    from finetune.request import FinetuneRequest

    runs = Path(settings.runs)
    joint = joint_folders(runs, settings.model, layers) if is_cross_layer(settings, layers, name) else None
    if joint is None:
        check_of_one_layer(runs, settings.model, layers, name)
    result = result or f"{name}-finetuned"
    return FinetuneRequest(
        folders={layer: folders_of(settings, layer) for layer in (sorted(layers) if joint else layers)},
        joint=joint,
        name=name,
        result=result,
        work=finetune_folder(runs, settings.model, result),
        lm=settings.model,
        device=device,
        settings=settings.finetune,
        evaluate=settings.evaluate,
        cache=settings.cache,
    )
