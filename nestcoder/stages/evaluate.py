"""From held-out rows to reports and feature pages: ``nestcoder.run_evaluate``, ``nestcoder.run_features``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.processes.garbage import no_collections
from common.progress import SILENT, Progress
from common.run_layout import check_of_one_layer
from nestcoder.config import PipelineSettings
from nestcoder.stages.folders import folders_of, joined_processes, trained_layers
from nestcoder.stages.joint import features_request, is_cross_layer


def run_evaluate(
    settings: PipelineSettings,
    layers: Sequence[int] = (),
    *,
    name: str = "main",
    device: str = "auto",
    lm: bool = False,
    gemma_scope: str | None = None,
    against: Path | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> dict[int, dict[str, Any]]:
    """Evaluate the transcoder ``name`` of each layer (without layers: of every trained layer); metrics.json by layer.

    ``lm`` also splices it into the language model; ``gemma_scope`` (a path, or "download") or ``against`` (a path)
    compares it with another dictionary, with ``force`` even if a check fails. With ``evaluate.features`` in the
    settings ``run_features`` follows.

        nestcoder.run_evaluate(nestcoder.load_settings("pipeline.yaml"))[8]["fvu_per_prefix"]
    """
    with no_collections():
        from evaluate.run import evaluate_layer

    check_of_one_layer(Path(settings.runs), settings.model, layers, name)
    results: dict[int, dict[str, Any]] = {}
    with joined_processes(device) as own_device:
        for layer in layers or trained_layers(settings, name):
            folders = folders_of(settings, layer)
            results[layer] = evaluate_layer(
                cache=folders.cache,
                cache_settings=settings.cache,
                transcoder=folders.transcoder(name),
                out=folders.report(name),
                settings=settings.evaluate,
                device=own_device,
                lm=settings.model if lm else None,
                gemma_scope=gemma_scope,
                against=against,
                force=force,
                progress=progress,
            )
    if settings.evaluate.features:
        run_features(settings, list(results), name=name, device=device, lm=lm, force=force, progress=progress)
    return results


def run_features(
    settings: PipelineSettings,
    layers: Sequence[int],
    *,
    name: str = "main",
    device: str = "auto",
    lm: bool = False,
    force: bool = False,
    progress: Progress = SILENT,
) -> dict[int, dict[str, Any]]:
    """Collect the evidence of every feature of each layer's transcoder ``name``, and write its pages.

    Returns evidence.json by layer; features of a cross-layer transcoder belong to the layer whose source they read.
    ``lm`` takes the unembedding from the language model, for effects on logits if the cache has none.

        nestcoder.run_features(settings, [8])
        evidence = nestcoder.load_features("runs/gpt2-stdlib/layer08/features/main")
        nestcoder.feature_page(evidence, 123)["label"]
    """
    from evaluate.features.run import features_of_layer

    results: dict[int, dict[str, Any]] = {}
    if is_cross_layer(settings, layers, name):
        from evaluate.joint.features import features_of_layers

        request = features_request(settings, layers, name)
        with joined_processes(device) as own_device:
            return features_of_layers(request, device=own_device, lm=settings.model if lm else None, progress=progress)
    check_of_one_layer(Path(settings.runs), settings.model, layers, name)
    with joined_processes(device) as own_device:
        for layer in layers:
            folders = folders_of(settings, layer)
            results[layer] = features_of_layer(
                cache=folders.cache,
                cache_settings=settings.cache,
                transcoder=folders.transcoder(name),
                out=folders.features(name),
                settings=settings.features,
                device=own_device,
                lm=settings.model if lm else None,
                force=force,
                progress=progress,
            )
    return results
