"""The three stages as functions of the settings: what the commands call, and what Python code may call.

    settings = nestcoder.load_settings("pipeline.yaml", ["train.steps=500"])
    nestcoder.run_harvest(settings, [8])
    nestcoder.run_train(settings, [8])
    metrics = nestcoder.run_evaluate(settings, [8])[8]

They write where the commands write (``common/run_layout.py``), go on where an earlier call or command was stopped, and
are silent unless they are given a ``common.progress.Progress``. Under torchrun every process calls them alike.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UsageError
from common.progress import Progress, Silent
from common.run_layout import CONFIG_FILE, RunFolders, check_of_one_layer, joint_folders, known_layers, run_folders
from nestcoder.config import PipelineSettings

if TYPE_CHECKING:
    from evaluate.interop.layer import ExportRequest, LayerSource
    from harvest.request import HarvestRequest
    from transcoder.transcoder import SourceView


def folders_of(settings: PipelineSettings, layer: int) -> RunFolders:
    """Where the cache, transcoders and reports of a layer lie."""
    return run_folders(Path(settings.runs), settings.model, layer)


def run_harvest(
    settings: PipelineSettings,
    layers: Sequence[int],
    *,
    device: str = "auto",
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[int, dict[str, Any]]:
    """Harvest ``layers`` in one pass over the text; what was done, by layer (cache, rows, seconds, proof, ...).

    ``fresh`` removes what an earlier harvest left. Raises errors of ``common/errors.py``.

        nestcoder.run_harvest(nestcoder.load_settings("pipeline.yaml"), [4, 8])[8]["cache"]
    """
    from harvest.run import harvest_layers

    return harvest_layers(harvest_request(settings, layers, device), fresh=fresh, progress=progress)


def harvest_request(settings: PipelineSettings, layers: Sequence[int], device: str = "auto") -> "HarvestRequest":
    """What the settings ask the harvest stage for, and this process's share of it."""
    from common.distributed import read_ranks
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
    progress: Progress | None = None,
) -> dict[int, dict[str, Any]]:
    """Harvest the first-letter prompts beside each layer's finished cache, for the absorption metric."""
    from harvest.probe import harvest_probe

    folders = {layer: folders_of(settings, layer).probe() for layer in layers}
    request = harvest_request(settings, layers, device)
    return harvest_probe(request, folders=folders, fresh=fresh, progress=progress)


def run_train(
    settings: PipelineSettings,
    layers: Sequence[int],
    *,
    name: str = "main",
    device: str = "auto",
    fresh: bool = False,
    progress: Progress | None = None,
) -> dict[int, dict[str, Any]]:
    """Train a transcoder (and those of the settings' sweep) on each layer's cache; its config.json, by layer.

    One cross-layer transcoder is trained for all ``layers`` together; its config.json is there for each of them.

    nestcoder.run_train(nestcoder.load_settings(overrides=["train.top_k=32"]), [8], name="k32")
    """
    from common.distributed import process_group, read_ranks
    from train.run import train_layers

    ranks = read_ranks()
    results: dict[int, dict[str, Any]] = {}
    with process_group(ranks, ranks.device(device)):
        for together, out in trainings(settings, layers, name):
            config = train_layers(
                caches=[folders_of(settings, layer).cache for layer in together],
                cache_settings=settings.cache,
                out=out,
                settings=settings.train,
                device=ranks.device(device),
                fresh=fresh,
                progress=progress or Silent(),
                log=settings.log,
            )
            results |= dict.fromkeys(together, config)
    return results


def trainings(settings: PipelineSettings, layers: Sequence[int], name: str) -> list[tuple[list[int], Path]]:
    """The trainings that the settings ask for: each one's layers, and its folder.

    Transcoders of several layers are trained one after another: a cache of a layer is read once either way, and one
    dictionary is in memory instead of all.
    """
    if settings.train.kind == "cross-layer":
        ordered = sorted(set(layers))
        return [(ordered, joint_folders(Path(settings.runs), settings.model, ordered).transcoder(name))]
    return [([layer], folders_of(settings, layer).transcoder(name)) for layer in layers]


def harvested_layers(settings: PipelineSettings) -> list[int]:
    """Layers that have a cache here. Raises UsageError where there is none."""
    runs = Path(settings.runs)
    layers = [layer for layer in known_layers(runs, settings.model) if folders_of(settings, layer).cache.is_dir()]
    if not layers:
        what = f"No layer of {settings.model} has been harvested."
        raise UsageError(what, where=runs, remedy="Run 'nestcoder harvest --layer all' first, or name the layers.")
    return layers


def layers_of_model(settings: PipelineSettings) -> list[int]:
    """All layers that the settings' model has."""
    from harvest.model.source import find_model

    return list(range(find_model(settings.model, revision=settings.harvest.revision).layers))


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
    progress: Progress | None = None,
) -> dict[int, dict[str, Any]]:
    """Evaluate the transcoder ``name`` of each layer (none given: of every trained layer); its metrics.json, by layer.

    ``lm`` also splices it into the language model; ``gemma_scope`` (a path, or "download") or ``against`` (a path)
    compares it with another dictionary, and ``force`` does so although a check fails. With ``evaluate.features`` in the
    settings the evidence of every feature is taken after each report, as ``run_features`` takes it.

        nestcoder.run_evaluate(nestcoder.load_settings("pipeline.yaml"))[8]["fvu_per_prefix"]
    """
    from common.distributed import process_group, read_ranks
    from evaluate.run import evaluate_layer

    check_of_one_layer(Path(settings.runs), settings.model, layers, name)
    ranks = read_ranks()
    results: dict[int, dict[str, Any]] = {}
    with process_group(ranks, ranks.device(device)):
        for layer in layers or trained_layers(settings, name):
            folders = folders_of(settings, layer)
            results[layer] = evaluate_layer(
                cache=folders.cache,
                cache_settings=settings.cache,
                transcoder=folders.transcoder(name),
                out=folders.report(name),
                settings=settings.evaluate,
                device=ranks.device(device),
                lm=settings.model if lm else None,
                gemma_scope=gemma_scope,
                against=against,
                force=force,
                progress=progress or Silent(),
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
    progress: Progress | None = None,
) -> dict[int, dict[str, Any]]:
    """Take the evidence of every feature of each layer's transcoder ``name``, and write its pages; evidence.json,
    by layer. Those of a cross-layer transcoder of these layers are read by the layer that its features read.

    ``lm`` takes the unembedding from the language model: for logits where the cache has none.

        nestcoder.run_features(settings, [8])
        evidence = nestcoder.load_features("runs/gpt2-stdlib/layer08/features/main")
        nestcoder.feature_page(evidence, 123)["label"]
    """
    from common.distributed import process_group, read_ranks
    from evaluate.features.run import features_of_layer
    from nestcoder.joint_stages import features_request, is_cross_layer

    ranks = read_ranks()
    results: dict[int, dict[str, Any]] = {}
    if is_cross_layer(settings, layers, name):
        from evaluate.joint.features import features_of_layers

        request = features_request(settings, layers, name)
        given = {"device": ranks.device(device), "lm": settings.model if lm else None}
        with process_group(ranks, ranks.device(device)):
            return features_of_layers(request, **given, progress=progress or Silent())
    check_of_one_layer(Path(settings.runs), settings.model, layers, name)
    with process_group(ranks, ranks.device(device)):
        for layer in layers:
            folders = folders_of(settings, layer)
            results[layer] = features_of_layer(
                cache=folders.cache,
                cache_settings=settings.cache,
                transcoder=folders.transcoder(name),
                out=folders.features(name),
                settings=settings.features,
                device=ranks.device(device),
                lm=settings.model if lm else None,
                force=force,
                progress=progress or Silent(),
            )
    return results


def run_export(
    settings: PipelineSettings,
    layers: Sequence[int],
    *,
    to: Sequence[str],
    out: Path,
    name: str = "main",
    prefix: int | None = None,
    source_view: "SourceView | None" = None,
    device: str = "auto",
    fresh: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Write the transcoder ``name`` of each layer, or the cross-layer transcoder of all of them, for the tools ``to``
    below ``out``; what each EXPORT.json says.

    ``prefix`` exports one prefix by itself; ``source_view`` makes it read another input than it was trained on.

        nestcoder.run_export(settings, [8], to=["saelens", "sparsify"], out=Path("exported"))[0]["folder"]
    """
    from common.distributed import read_ranks
    from evaluate.interop.export import export_layers
    from evaluate.interop.joint_export import export_cross_layer
    from nestcoder.joint_stages import is_cross_layer, joint_source

    request = export_request(to=to, out=out, prefix=prefix, source_view=source_view, fresh=fresh)
    place = read_ranks().device(device)
    shown = progress or Silent()
    if is_cross_layer(settings, layers, name):
        source = joint_source(settings, layers, name)
        return export_cross_layer(source, request, device=place, progress=shown, cache_settings=settings.cache)
    sources = layer_sources(settings, layers, name)
    return export_layers(sources, request, device=place, progress=shown, cache_settings=settings.cache)


def export_request(
    *, to: Sequence[str], out: Path, prefix: int | None, source_view: "SourceView | None", fresh: bool
) -> "ExportRequest":
    """What an export is asked for."""
    from evaluate.interop.convert import Wish
    from evaluate.interop.layer import ExportRequest

    return ExportRequest(to=tuple(dict.fromkeys(to)), out=out, wish=Wish(prefix, source_view), fresh=fresh)


def layer_sources(settings: PipelineSettings, layers: Sequence[int], name: str) -> "list[LayerSource]":
    """Where each layer's cache and its transcoder ``name`` lie. Raises UsageError where none is trained."""
    from common.distributed import read_ranks
    from evaluate.interop.layer import LayerSource

    if read_ranks().world > 1:
        raise UsageError("Transcoders are exported and imported by one process.", remedy="Run it without torchrun.")
    check_of_one_layer(Path(settings.runs), settings.model, layers, name)
    sources = [
        LayerSource(layer, folders_of(settings, layer).cache, folders_of(settings, layer).transcoder(name))
        for layer in layers
    ]
    for source in sources:
        if not (source.transcoder / CONFIG_FILE).is_file():
            remedy = "Run harvest and train for this layer first, or name another run with --name."
            raise UsageError("There is no trained transcoder here.", where=source.transcoder, remedy=remedy)
    return sources


def run_import(
    settings: PipelineSettings,
    path: str,
    layers: Sequence[int],
    *,
    name: str,
    source_view: "SourceView | None" = None,
    device: str = "auto",
    force: bool = False,
    fresh: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> dict[int, dict[str, Any]]:
    """Take a dictionary of another tool into the run ``name`` of each layer; its config.json, by layer. One of several
    layers becomes a run of all of them.

    ``path`` is a folder, a file, ``hf:user/repository/path``, or a URL that fsspec knows. ``source_view`` says what its
    encoder reads, where its own files may mean two things.

        nestcoder.run_import(settings, "sae/layer08", [8], name="theirs")
    """
    from common.distributed import read_ranks
    from evaluate.interop.intake import ImportRequest, import_layer
    from evaluate.interop.joint_intake import JointImport, import_cross_layer
    from nestcoder.joint_stages import joint_source
    from transcoder.formats.fetch import fetched
    from transcoder.formats.peers.circuit_tracer_clt import find_circuit_tracer_clt

    if read_ranks().world > 1:
        raise UsageError("Transcoders are exported and imported by one process.", remedy="Run it without torchrun.")
    found = fetched(path, layer=layers[0], progress=progress or Silent())
    if folder := find_circuit_tracer_clt(found):
        source = joint_source(settings, layers, name)
        joint = JointImport(folder, source, source_view, fresh=fresh, origin=path, dry_run=dry_run)
        place = read_ranks().device(device)
        config = import_cross_layer(joint, device=place, progress=progress or Silent(), cache_settings=settings.cache)
        return dict.fromkeys(sorted(layers), config)
    results: dict[int, dict[str, Any]] = {}
    for layer in layers:
        folders = folders_of(settings, layer)
        request = ImportRequest(
            path=found if layer == layers[0] else fetched(path, layer=layer, progress=progress or Silent()),
            layer=layer,
            out=folders.transcoder(name),
            cache=folders.cache,
            source_view=source_view,
            force=force,
            fresh=fresh,
            origin=path,
        )
        results[layer] = import_layer(
            request,
            device=read_ranks().device(device),
            progress=progress or Silent(),
            cache_settings=settings.cache,
            dry_run=dry_run,
        )
    return results


def trained_layers(settings: PipelineSettings, name: str) -> list[int]:
    """Layers that have a trained transcoder of that name. Raises UsageError where there is none."""
    runs = Path(settings.runs)
    check_of_one_layer(runs, settings.model, (), name)
    layers = [layer for layer in known_layers(runs, settings.model) if name in folders_of(settings, layer).trained()]
    if not layers:
        what = f"No layer of {settings.model} has a trained transcoder named '{name}'."
        raise UsageError(what, where=runs, remedy="Run 'make harvest LAYER=8' and 'make train LAYER=8' first.")
    return layers
