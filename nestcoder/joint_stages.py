"""Evaluation of dictionaries of several layers together, as functions of the settings, like ``nestcoder/stages.py``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.progress import Progress, Silent
from common.run_layout import CONFIG_FILE, joint_folders
from nestcoder.config import PipelineSettings
from nestcoder.stages import folders_of


def run_evaluate_joint(
    settings: PipelineSettings,
    layers: Sequence[int],
    *,
    names: Sequence[str],
    device: str = "auto",
    lm: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure dictionaries of several layers on the same rows: cross-layer transcoders, and per-layer sets, by name.

    ``lm`` also splices all layers of each into the language model at once. Returns metrics.json.

        nestcoder.run_evaluate_joint(settings, range(12), names=["clt", "main"], lm=True)
    """
    from common.distributed import read_ranks
    from evaluate.joint.run import Candidate, evaluate_layers

    if read_ranks().world > 1:
        raise UsageError("Layers are measured together by one process.", remedy="Run it without torchrun.")
    ordered = sorted(set(layers))
    joint = joint_folders(Path(settings.runs), settings.model, ordered)
    candidates = [
        Candidate(
            name, joint.transcoder(name), {layer: folders_of(settings, layer).transcoder(name) for layer in ordered}
        )
        for name in dict.fromkeys(names)
    ]
    return evaluate_layers(
        caches={layer: folders_of(settings, layer).cache for layer in ordered},
        cache_settings=settings.cache,
        candidates=candidates,
        out=joint.report(names[0]),
        settings=settings.evaluate,
        device=device,
        lm=settings.model if lm else None,
        progress=progress or Silent(),
    )


def is_cross_layer(settings: PipelineSettings, layers: Sequence[int], name: str) -> bool:
    """Whether ``name`` is a trained cross-layer transcoder of these layers."""
    if len(set(layers)) < 2:
        return False
    folder = joint_folders(Path(settings.runs), settings.model, layers).transcoder(name)
    return (folder / CONFIG_FILE).is_file()
