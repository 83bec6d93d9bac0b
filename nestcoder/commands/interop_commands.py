"""The ``export`` and ``import`` commands: transcoders for other tools, and dictionaries from them."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.distributed import read_ranks
from common.errors import UsageError
from common.run_layout import joint_folders
from common.units import in_bytes
from nestcoder.invocation import CommandResult, Invocation
from nestcoder.progress import shown_progress
from nestcoder.stages.interop import export_request, layer_sources, run_export, run_import
from nestcoder.stages.joint import is_cross_layer, joint_source
from nestcoder.text import table

IMPORTED = "imported"
PAGES = ("neuronpedia", "delphi")
"""Formats without weights: feature pages, and every firing."""

if TYPE_CHECKING:
    from evaluate.interop.export import Planned
    from transcoder.transcoder import SourceView


@dataclass(frozen=True)
class ExportOptions:
    """The options of ``export`` without layers and device."""

    to: tuple[str, ...]
    out: Path
    name: str
    prefix: int | None
    source_view: "SourceView | None"
    fresh: bool


def export(invocation: Invocation, layers: list[int], device: str, options: ExportOptions) -> CommandResult:
    """Write each layer's transcoder in every requested format; one table.

    Formats of feature pages are written from the evidence; a set for circuit-tracer gets its pages if every layer has
    evidence.
    """
    weights, pages = _divided(options)
    _refuse_pages_that_are_there(invocation, layers, pages, options)
    results: list[dict[str, Any]] = []
    if weights.to or not pages:
        with shown_progress() as progress:
            results = run_export(invocation.settings, layers, device=device, progress=progress, **vars(weights))
    folders = [f"exported: {result['folder']}" for result in results]
    folders += [
        f"exported: {_write_pages(invocation, layers, target, options.out / target, options, device)}"
        for target in pages
    ]
    for result in results:
        if result["format"] == "circuit-tracer" and _has_evidence(invocation, layers, options.name):
            features = Path(result["folder"]) / "features"
            folders.append(f"pages: {_write_pages(invocation, layers, 'circuit-tracer', features, options, device)}")
    rows = [
        [
            result["format"],
            layer,
            record["exactness"],
            *(f"{record['held_out'][when]['fvu']:.4f}" for when in ("before", "after")),
            *(f"{record['held_out'][when]['l0']:.2f}" for when in ("before", "after")),
        ]
        for result in results
        for layer, record in result["layers"].items()
    ]
    heading = ["format", "layer", "", "FVU", "after", "L0", "after"]
    lines = [*(table(heading, rows) if rows else []), *([""] if rows else []), *folders, *_caveats(results)]
    return CommandResult(results, "\n".join(lines))


def plan_export(invocation: Invocation, layers: list[int], device: str, options: ExportOptions) -> CommandResult:
    """What ``export`` would write."""
    weights, pages = _divided(options)
    _refuse_pages_that_are_there(invocation, layers, pages, options)
    planned = [] if pages and not weights.to else _planned(invocation, layers, device, weights)
    rows = [
        [
            item.to,
            ", ".join(map(str, item.layers)),
            _filled(item.silent_layers),
            in_bytes(item.bytes_at_most),
            item.folder,
        ]
        for item in planned
    ]
    heading = ["format", "layers", "", "at most", "folder"]
    lines = [*table(heading, rows), *(f"pages from the evidence: {options.out / target}" for target in pages)]
    return CommandResult([asdict(item) for item in planned], "\n".join(lines))


def _planned(invocation: Invocation, layers: list[int], device: str, options: ExportOptions) -> "list[Planned]":
    from common.progress import Silent
    from evaluate.interop.export import plan_export as plan
    from evaluate.interop.joint_export import plan_cross_layer

    settings = invocation.settings
    given = {name: value for name, value in vars(options).items() if name != "name"}
    request = export_request(**given)
    own_device = read_ranks().device(device)
    if is_cross_layer(settings, layers, options.name):
        source = joint_source(settings, layers, options.name)
        return plan_cross_layer(source, request, device=own_device, progress=Silent(), cache_settings=settings.cache)
    sources = layer_sources(settings, layers, options.name)
    return plan(sources, request, device=own_device, progress=Silent(), cache_settings=settings.cache)


def _divided(options: ExportOptions) -> tuple[ExportOptions, list[str]]:
    """The options for the formats with weights, and the requested formats of feature pages."""
    pages = [target for target in options.to if target in PAGES]
    return replace(options, to=tuple(target for target in options.to if target not in PAGES)), pages


def _has_evidence(invocation: Invocation, layers: list[int], name: str) -> bool:
    return all(invocation.folders(layer).features(name).is_dir() for layer in layers)


def _refuse_pages_that_are_there(
    invocation: Invocation, layers: list[int], pages: list[str], options: ExportOptions
) -> None:
    """Check, before anything is written, that the pages are new and have evidence. Raises UsageError."""
    for target in pages:
        if (options.out / target).exists():
            what = "This exists already."
            raise UsageError(what, where=options.out / target, remedy="Name a new folder, or remove this one.")
        if target != "delphi" and not _has_evidence(invocation, layers, options.name):
            what = f"{target} is written from feature evidence, and not all of these layers have it."
            raise UsageError(what, remedy="Run 'nestcoder features' for these layers first.")


def _write_pages(
    invocation: Invocation, layers: list[int], target: str, out: Path, options: ExportOptions, device: str
) -> Path:
    from nestcoder.commands import features_export

    features_export.export(invocation, layers, target, out, name=options.name, device=device)
    return out


def _filled(silent_layers: int) -> str:
    return f"and {silent_layers} that never fire" if silent_layers else ""


def _caveats(results: list[dict[str, Any]]) -> list[str]:
    found = {record["caveat"] for result in results for record in result["layers"].values() if record["caveat"]}
    return [f"note: {caveat}" for caveat in sorted(found)]


@dataclass(frozen=True)
class ImportOptions:
    """The options of ``import`` without path, layers and device."""

    name: str
    source_view: "SourceView | None"
    force: bool
    fresh: bool
    dry_run: bool


def import_dictionary(
    invocation: Invocation, path: str, layers: list[int], device: str, options: ImportOptions
) -> CommandResult:
    """Import another tool's dictionary as the run ``options.name`` of each layer, and show its facts."""
    with shown_progress() as progress:
        configs = run_import(invocation.settings, path, layers, device=device, progress=progress, **vars(options))
    lines: list[str] = []
    folders = {f"layer {layer}": invocation.folders(layer).transcoder(options.name) for layer in configs}
    found = {f"layer {layer}": config for layer, config in configs.items()}
    if "layers" in next(iter(configs.values())):
        settings = invocation.settings
        named = f"layers {', '.join(map(str, configs))}"
        found = {named: next(iter(configs.values()))}
        folders = {named: joint_folders(Path(settings.runs), settings.model, layers).transcoder(options.name)}
    for named, config in found.items():
        facts = config[IMPORTED]
        lines.append(
            f"{named}: {facts['format']}, {config['source_site']} to {config['target_site']}, "
            f"{config['dict_size']:,} features, {config['activation']}"
        )
        if facts["measured"]:
            lines.append(f"  on held-out rows: FVU {facts['measured']['fvu']:.4f}, L0 {facts['measured']['l0']:.2f}")
        else:
            lines.append("  this layer has no cache yet, so nothing was measured")
        lines += [f"  note: {note}" for note in config["notes"]]
        if not options.dry_run:
            lines.append(f"imported: {folders[named]}")
    return CommandResult(configs, "\n".join(lines))
