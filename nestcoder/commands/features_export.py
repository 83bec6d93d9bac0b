"""``features export``: writes the evidence of layers in another tool's file format, into a new folder."""

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UsageError
from common.run_layout import dictionaries_of_layer
from nestcoder.invocation import CommandResult
from nestcoder.progress import shown_progress
from nestcoder.stages.joint import dictionary_with
from nestcoder.text import as_lines

if TYPE_CHECKING:
    from evaluate.export.files import Files
    from evaluate.export.neuronpedia import Decoder
    from evaluate.export.plan import ExportPlan
    from evaluate.features.evidence import Evidence
    from nestcoder.invocation import Invocation


def export(
    invocation: "Invocation", layers: list[int], target: str, out: Path, *, name: str, device: str
) -> CommandResult:
    """Write the evidence ``name`` of ``layers`` into the new folder ``out``."""
    from evaluate.export.files import write_folder

    _refuse_what_is_there(out)
    write_folder(out, _files(invocation, layers, target, name=name, device=device))
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    size = sum((out / path).stat().st_size for path in written)
    text = f"{target}: {out} ({len(written):,} files, {size:,} bytes)"
    return CommandResult({"folder": str(out), "files": written, "bytes": size}, text)


def plan_export(
    invocation: "Invocation", layers: list[int], target: str, out: Path, *, name: str, device: str
) -> CommandResult:
    """What ``export`` would write for each layer. It reads the evidence, like the export."""
    _refuse_what_is_there(out)
    plans = {layer: asdict(_plan(invocation, layers, layer, target, out, name, device)) for layer in layers}
    return CommandResult(plans, "\n\n".join(map(as_lines, plans.values())))


def _plan(
    invocation: "Invocation", layers: list[int], layer: int, target: str, out: Path, name: str, device: str
) -> "ExportPlan":
    from evaluate.export.plan import plan_delphi, plan_pages

    if target != "delphi":
        return plan_pages(*next(_with_decoders(invocation, [layer], name)), target, out)
    return plan_delphi(
        cache=invocation.folders(layer).cache,
        cache_settings=invocation.settings.cache,
        transcoder=dictionary_with(invocation.settings, layers, layer, name),
        layer=layer,
        out=out,
        settings=invocation.settings.features,
        device=device,
    )


def _refuse_what_is_there(out: Path) -> None:
    if out.exists():
        raise UsageError("This exists already.", where=out, remedy="Name a new folder, or remove this one.")


def _files(invocation: "Invocation", layers: list[int], target: str, *, name: str, device: str) -> "Files":
    from evaluate.export import circuit_tracer, neuronpedia, plain

    if target == "delphi":
        return _delphi(invocation, layers, name=name, device=device)
    read = _evidence(invocation, layers, name)
    if target == "circuit-tracer":
        return circuit_tracer.circuit_tracer_files(read)
    if target == "neuronpedia":
        given = _with_decoders(invocation, layers, name)
        return neuronpedia.neuronpedia_files(given, created_at=datetime.now(UTC).isoformat(timespec="seconds"))
    return plain.jsonl_files(read) if target == "jsonl" else plain.parquet_files(read)


def _evidence(invocation: "Invocation", layers: list[int], name: str) -> "Iterator[Evidence]":
    """The evidence of one layer after the other; only one is in memory."""
    from evaluate.features.evidence import read_evidence

    for layer in layers:
        yield read_evidence(invocation.folders(layer).features(name))


def _with_decoders(
    invocation: "Invocation", layers: list[int], name: str
) -> "Iterator[tuple[Evidence, Decoder | None]]":
    """The same with what each feature writes to its own layer; None if the dictionary is no longer there."""
    from evaluate.features.evidence import made_of

    for layer, evidence in zip(layers, _evidence(invocation, layers, name), strict=True):
        settings = invocation.settings
        there = dictionaries_of_layer(Path(settings.runs), settings.model, layer, name)
        folder = made_of(evidence, there, path=invocation.folders(layer).features(name))
        yield evidence, None if folder is None else _decoder(folder, layer)


def _decoder(folder: Path, layer: int) -> "Decoder":
    from transcoder.formats.cross_layer import load_cross_layer
    from transcoder.formats.native import CROSS_LAYER, load_transcoder, read_config

    if read_config(folder).get("kind") == CROSS_LAYER:
        dictionary = load_cross_layer(folder)
        trained = dictionary.within(dictionary.layers.index(layer))
    else:
        trained = load_transcoder(folder)
    return trained.W_dec.detach().float().numpy()


def _delphi(invocation: "Invocation", layers: list[int], *, name: str, device: str) -> "Files":
    """delphi needs every firing, which evidence does not store: the rows are replayed."""
    from evaluate.export.replayed import delphi_of_layer

    settings = invocation.settings
    with shown_progress() as progress:
        for layer in layers:
            yield from delphi_of_layer(
                cache=invocation.folders(layer).cache,
                cache_settings=settings.cache,
                transcoder=dictionary_with(settings, layers, layer, name),
                settings=settings.features,
                device=device,
                progress=progress,
            )
