"""Evaluation of dictionaries of several layers on the same rows, as functions of the settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UsageError
from common.progress import SILENT, Progress
from common.run_layout import CONFIG_FILE, dictionaries_of_layer, joint_folders, run_folders
from nestcoder.config import PipelineSettings
from nestcoder.stages.folders import joined_processes

if TYPE_CHECKING:
    from evaluate.joint.features import JointFeatures
    from evaluate.joint.opened import JointSource


def run_evaluate_joint(
    settings: PipelineSettings,
    layers: Sequence[int],
    *,
    names: Sequence[str],
    device: str = "auto",
    lm: bool = False,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Measure dictionaries of several layers on the same rows: cross-layer transcoders, and per-layer sets, by name.

    ``lm`` also splices all layers of each into the language model at once. Returns metrics.json.

        nestcoder.run_evaluate_joint(settings, range(12), names=["clt", "main"], lm=True)
    """
    from evaluate.joint.run import Candidate, evaluate_layers

    ordered = sorted(set(layers))
    joint = joint_folders(Path(settings.runs), settings.model, ordered)
    folders = {layer: run_folders(Path(settings.runs), settings.model, layer) for layer in ordered}
    candidates = [
        Candidate(name, joint.transcoder(name), {layer: own.transcoder(name) for layer, own in folders.items()})
        for name in dict.fromkeys(names)
    ]
    with joined_processes(device) as own_device:
        return evaluate_layers(
            caches={layer: own.cache for layer, own in folders.items()},
            cache_settings=settings.cache,
            candidates=candidates,
            out=joint.report(names[0]),
            settings=settings.evaluate,
            device=own_device,
            lm=settings.model if lm else None,
            progress=progress,
        )


def is_cross_layer(settings: PipelineSettings, layers: Sequence[int], name: str) -> bool:
    """Whether ``name`` is a trained cross-layer transcoder of these layers."""
    if len(set(layers)) < 2:
        return False
    folder = joint_folders(Path(settings.runs), settings.model, layers).transcoder(name)
    return (folder / CONFIG_FILE).is_file()


def dictionary_with(settings: PipelineSettings, layers: Sequence[int], layer: int, name: str) -> Path:
    """Where the dictionary ``name`` with ``layer`` lies: the cross-layer transcoder of ``layers``, the layer's own, or
    the one cross-layer transcoder that has the layer. Raises UsageError where several have it."""
    runs = Path(settings.runs)
    if is_cross_layer(settings, layers, name):
        return joint_folders(runs, settings.model, layers).transcoder(name)
    own = run_folders(runs, settings.model, layer).transcoder(name)
    found = dictionaries_of_layer(runs, settings.model, layer, name)
    if len(found) > 1 and own not in found:
        what = f"Several cross-layer transcoders '{name}' have layer {layer}."
        raise UsageError(what, where=found[1], remedy="Name all layers of the one that is meant, each with --layer.")
    return found[0] if found else own


def joint_source(settings: PipelineSettings, layers: Sequence[int], name: str) -> "JointSource":
    """The folder of the cross-layer transcoder ``name`` of these layers (it need not exist), and the layers' caches."""
    from evaluate.joint.opened import JointSource

    runs = Path(settings.runs)
    caches = {layer: run_folders(runs, settings.model, layer).cache for layer in sorted(set(layers))}
    return JointSource(caches, joint_folders(runs, settings.model, list(caches)).transcoder(name))


def features_request(settings: PipelineSettings, layers: Sequence[int], name: str) -> "JointFeatures":
    """The request of the settings for the feature pages of the cross-layer transcoder ``name``.

    Raises UsageError for one that selects over layers: the encoder of a layer does not say which of its features fire.
    """
    from evaluate.joint.features import JointFeatures
    from transcoder.formats.native import read_config

    runs = Path(settings.runs)
    ordered = sorted(set(layers))
    source = joint_source(settings, ordered, name)
    if read_config(source.transcoder).get("over_layers"):
        what = f"'{name}' selects over all of its layers at once; feature pages are made layer by layer."
        raise UsageError(what, where=source.transcoder, remedy="Train with train.select_over: layer.")
    return JointFeatures(
        source=source,
        layers={layer: run_folders(runs, settings.model, layer) for layer in ordered},
        joint=joint_folders(runs, settings.model, ordered),
        name=name,
        settings=settings.features,
        cache=settings.cache,
    )
