"""Transcoders for other tools and dictionaries from them: ``nestcoder.run_export``, ``nestcoder.run_import``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.distributed import read_ranks
from common.errors import UsageError
from common.progress import SILENT, Progress
from common.run_layout import CONFIG_FILE, check_of_one_layer
from nestcoder.config import PipelineSettings
from nestcoder.stages.folders import check_one_process, folders_of
from nestcoder.stages.joint import is_cross_layer, joint_source

if TYPE_CHECKING:
    from evaluate.interop.layer import ExportRequest, LayerSource
    from transcoder.transcoder import SourceView


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
    progress: Progress = SILENT,
) -> list[dict[str, Any]]:
    """Write the transcoder ``name`` of each layer, or the cross-layer transcoder of all of them, for the tools ``to``
    below ``out``; returns the contents of each EXPORT.json.

    ``prefix`` exports only one prefix; with ``source_view`` the export reads another input than in training.

        nestcoder.run_export(settings, [8], to=["saelens", "sparsify"], out=Path("exported"))[0]["folder"]
    """
    from evaluate.interop.export import export_layers
    from evaluate.interop.joint_export import export_cross_layer

    request = export_request(to=to, out=out, prefix=prefix, source_view=source_view, fresh=fresh)
    own_device = read_ranks().device(device)
    if is_cross_layer(settings, layers, name):
        source = joint_source(settings, layers, name)
        return export_cross_layer(source, request, device=own_device, progress=progress, cache_settings=settings.cache)
    sources = layer_sources(settings, layers, name)
    return export_layers(sources, request, device=own_device, progress=progress, cache_settings=settings.cache)


def export_request(
    *, to: Sequence[str], out: Path, prefix: int | None, source_view: "SourceView | None", fresh: bool
) -> "ExportRequest":
    """The request for an export."""
    from evaluate.interop.convert import Wish
    from evaluate.interop.layer import ExportRequest

    return ExportRequest(to=tuple(dict.fromkeys(to)), out=out, wish=Wish(prefix, source_view), fresh=fresh)


def layer_sources(settings: PipelineSettings, layers: Sequence[int], name: str) -> "list[LayerSource]":
    """The cache and the transcoder ``name`` of each layer. Raises UsageError if a layer has no trained one."""
    from evaluate.interop.layer import LayerSource

    check_one_process("Transcoders are exported and imported")
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
    progress: Progress = SILENT,
) -> dict[int, dict[str, Any]]:
    """Import a dictionary of another tool as the run ``name`` of each layer; returns its config.json by layer.

    A dictionary of several layers becomes a run of all of them. ``path`` is a folder, a file,
    ``hf:user/repository/path``, or a URL that fsspec knows; if a folder is not a dictionary, the only dictionary in a
    folder inside it is imported. ``source_view`` is the input of its encoder, if its files could mean two.

        nestcoder.run_import(settings, "sae/layer08", [8], name="theirs")
    """
    from evaluate.interop.intake import ImportRequest, import_layer
    from evaluate.interop.joint_intake import JointImport, import_cross_layer
    from transcoder.formats.peers.circuit_tracer_clt import find_circuit_tracer_clt

    check_one_process("Transcoders are exported and imported")
    found, origin = _found(path, layers[0], progress)
    if folder := find_circuit_tracer_clt(found):
        source = joint_source(settings, layers, name)
        joint = JointImport(folder, source, source_view, fresh=fresh, origin=origin, dry_run=dry_run)
        own_device = read_ranks().device(device)
        config = import_cross_layer(joint, device=own_device, progress=progress, cache_settings=settings.cache)
        return dict.fromkeys(sorted(layers), config)
    results: dict[int, dict[str, Any]] = {}
    for layer in layers:
        folders = folders_of(settings, layer)
        if layer != layers[0]:
            found, origin = _found(path, layer, progress)
        request = ImportRequest(
            path=found,
            layer=layer,
            out=folders.transcoder(name),
            cache=folders.cache,
            source_view=source_view,
            force=force,
            fresh=fresh,
            origin=origin,
        )
        results[layer] = import_layer(
            request,
            device=read_ranks().device(device),
            progress=progress,
            cache_settings=settings.cache,
            dry_run=dry_run,
        )
    return results


def _found(path: str, layer: int, progress: Progress) -> tuple[Path, str]:
    """Where a layer's dictionary lies on this machine, and the place that it came from."""
    from transcoder.formats.fetch import fetched
    from transcoder.formats.inside import dictionary_in
    from transcoder.formats.wanted import Wanted

    local = fetched(path, layer=layer, progress=progress)
    found = dictionary_in(local, Wanted(layer), progress=progress)
    if found == local:
        return found, path
    return found, f"{path.rstrip('/')}/{found.relative_to(local).as_posix()}"
