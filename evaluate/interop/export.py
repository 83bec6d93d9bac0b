"""Writes trained transcoders for other tools, each file measured on held-out rows after it was converted.

    OUT/<tool>/...          what the tool loads; OUT/<tool>-p288/... where one prefix was asked for
    .../EXPORT.json         what it is: exact or approximate, what was done, FVU and L0 before and after, of which rows

Whatever may be refused is refused before anything is measured or written. Each folder is written aside, read back,
compared with what was measured, and only then renamed. What somebody else made is never written over.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache.config import CacheSettings
from common import disk
from common.device import choose_device
from common.errors import NestcoderError, NumericalError, UsageError
from common.processes import locks
from common.progress import Progress
from evaluate.interop.convert import Converted, about_of, convert, sized
from evaluate.interop.layer import ExportLayer, ExportRequest, LayerSource
from transcoder.formats.files.safe import read_json
from transcoder.formats.foreign import FORMATS, WRITERS, Wanted, Writer
from transcoder.transcoder import Transcoder

VERSION = 1
"""Of EXPORT.json."""
EXPORT_FILE = "EXPORT.json"
LOCK = ".export.lock"
TOLERANCE = 1e-4
"""Of the largest number: how far what a file computes may lie from what was measured; rounding alone is 1e-6."""


@dataclass(frozen=True)
class Planned:
    """One folder that an export writes. ``silent_layers`` are those of a set that get features that never fire."""

    to: str
    folder: str
    layers: tuple[int, ...]
    silent_layers: int
    bytes_at_most: int


def plan_export(
    sources: Sequence[LayerSource],
    request: ExportRequest,
    *,
    device: str,
    progress: Progress,
    cache_settings: CacheSettings | None = None,
) -> list[Planned]:
    """What ``export_layers`` would write, after it has refused what it would refuse."""
    layers = _opened(sources, request, device=device, progress=progress, cache_settings=cache_settings)
    return [_planned(name, group, request) for name, group in _folders(layers, request)]


def export_layers(
    sources: Sequence[LayerSource],
    request: ExportRequest,
    *,
    device: str,
    progress: Progress,
    cache_settings: CacheSettings | None = None,
) -> list[dict[str, Any]]:
    """Write every layer in every format; what each EXPORT.json says, with its ``folder``.

    Raises UsageError, DamagedError, MismatchError, NumericalError (what was written is not what was measured).
    """
    layers = _opened(sources, request, device=device, progress=progress, cache_settings=cache_settings)
    folders = list(_folders(layers, request))
    for name, group in folders:
        _planned(name, group, request)
    with locks.lock(request.out / LOCK):
        return [_export(name, group, request) for name, group in folders]


def _opened(
    sources: Sequence[LayerSource],
    request: ExportRequest,
    *,
    device: str,
    progress: Progress,
    cache_settings: CacheSettings | None,
) -> list[ExportLayer]:
    unknown = [name for name in request.to if name not in WRITERS]
    if unknown or not request.to:
        what = f"{', '.join(map(repr, unknown)) or 'Nothing'} is not a format that is written."
        raise UsageError(what, remedy=f"There are {', '.join(WRITERS)}.")
    device_name = str(choose_device(device))
    layers = [ExportLayer(source, request, device_name, progress, cache_settings) for source in sources]
    for layer in layers:
        layer.check()
    return layers


def _folders(layers: Sequence[ExportLayer], request: ExportRequest) -> Iterator[tuple[str, Sequence[ExportLayer]]]:
    """(format, the layers of one folder): each by itself, or all in one where the format is of sets."""
    for name in request.to:
        yield from ((name, group) for group in ([layers] if WRITERS[name].frame else [[layer] for layer in layers]))


def _planned(name: str, layers: Sequence[ExportLayer], request: ExportRequest) -> Planned:
    """Raises UsageError where the folder is there and is something else."""
    writer = WRITERS[name]
    first = layers[0]
    numbers = tuple(layer.source.layer for layer in layers)
    silent = max(0, (first.about.layers_of_model or max(numbers) + 1) - len(layers)) if writer.frame else 0
    sizes = {layer.trained.dict_size for layer in layers}
    if writer.frame and request.wish.prefix is None and len(sizes) > 1:
        what = f"In {name} all layers must have the same number of features; these have {sorted(sizes)}."
        raise UsageError(what, remedy="Export each layer into its own folder.")
    size = 4 * (sum(array.numel() for array in first.trained.arrays().values()) + first.trained.dict_size)
    folder = _folder(writer, layers, float(first.trained.top_k or 0), request)
    refuse_another(folder, _identity(name, layers, request), fresh=request.fresh)
    return Planned(name, str(folder), numbers, silent, size * (len(layers) + silent))


def _folder(writer: Writer, layers: Sequence[ExportLayer], l0: float, request: ExportRequest) -> Path:
    """``l0`` names the folder of a format whose folders promise one."""
    first = layers[0]
    tool, _, rest = writer.folder(first.about, first.trained.dict_size, l0).partition("/")
    size = request.wish.prefix
    has_all_features = size in (None, first.trained.dict_size)
    return request.out / (tool if has_all_features else f"{tool}-p{size}") / rest


def _export(name: str, layers: Sequence[ExportLayer], request: ExportRequest) -> dict[str, Any]:
    """One folder, of one layer or, in a format of sets, of all."""
    writer = WRITERS[name]
    identity = _identity(name, layers, request)
    # Named as the final folder, whose name is part of some formats.
    final = _folder(writer, layers, float(layers[0].trained.top_k or 0), request)
    top = request.out / f".{name}.exporting"
    aside = top / final.name
    disk.remove(top)
    silent: list[int] = []
    if writer.frame:
        abouts = [about_of(writer, layer.about, request.wish) for layer in layers]
        silent = writer.frame(aside, abouts, sized(layers[0].trained, request.wish.prefix))
    records: dict[str, Any] = {}
    for layer in layers:
        converted, records[str(layer.source.layer)] = _converted(writer, layer, request)
        writer.write(aside, converted.transcoder, converted.about)
        _check_written(name, aside, converted, layer)
    l0 = next(iter(records.values()))["held_out"]["after"]["l0"]
    folder = _folder(writer, layers, l0, request)
    refuse_another(folder, identity, fresh=request.fresh)
    document = {
        "version": VERSION,
        "written_by": "nestcoder",
        "exported_at": now(),
        **identity,
        "never_firing_layers": silent,
        "layers": records,
    }
    disk.write_file(aside / EXPORT_FILE, (json.dumps(document, indent=1) + "\n").encode())
    disk.remove(folder)
    disk.move(aside, folder)
    disk.remove(top)
    return document | {"folder": str(folder)}


def _converted(writer: Writer, layer: ExportLayer, request: ExportRequest) -> tuple[Converted, dict[str, Any]]:
    """A layer as the format holds it, with its record in the file's own metadata, and that record."""
    converted = convert(
        writer,
        layer.trained,
        layer.about,
        wish=request.wish,
        norm=layer.norm,
        thresholds=lambda: layer.thresholds,
    )
    made = converted.transcoder
    size = converted.prefix["size"] if converted.prefix else made.dict_size
    index = layer.trained.prefixes.index(size)
    after = layer.measured(made)
    record = {
        "exactness": converted.exactness,
        "steps": list(converted.steps),
        "model": layer.about.model,
        "source_site": converted.about.source_site,
        "target_site": converted.about.target_site,
        "activation": made.rule.name,
        "prefixes": list(made.prefixes),
        "prefix": converted.prefix,
        "held_out": {
            "rows": after.rows,
            "cache": layer.reader.fingerprint,
            "before": layer.before.of_prefix(index),
            "after": after.of_prefix(-1),
            "per_prefix": [
                {"prefix": prefix, "before": layer.before.of_prefix(number), "after": after.of_prefix(number)}
                for number, prefix in enumerate(layer.trained.prefixes[: index + 1])
            ],
        },
        "transcoder": {
            "name": layer.source.transcoder.name,
            "activation": layer.trained.rule.name,
            "top_k": layer.trained.top_k,
            "dict_size": layer.trained.dict_size,
            "weights": layer.trained.config.get("weights"),
            "tokens_trained": layer.trained.tokens_trained,
        },
        "caveat": writer.caveat(converted.about) or None,
    }
    return converted.recorded(record), record


def _check_written(name: str, folder: Path, converted: Converted, layer: ExportLayer) -> None:
    """Raises NumericalError unless what lies in ``folder`` computes what was measured."""
    layout = FORMATS[WRITERS[name].format]
    wanted = Wanted(layer.source.layer, layer.trained.d_source, layer.trained.d_target, force=True)
    path = layout.find(folder, wanted)
    assert path is not None, "a format finds what it has written"
    read = layout.read(path, wanted).on(layer.device)
    source = layer.checked_rows(converted.transcoder)
    for meant, found in zip(_outputs(converted.transcoder, source), _outputs(read, source), strict=True):
        far = float((meant - found).abs().max() / meant.abs().max().clamp_min(1e-30))
        if far > TOLERANCE:
            what = f"What was written for {name} computes something else than was measured: {far:.1e} of the largest."
            raise NumericalError(what, where=path)


def _outputs(transcoder: Transcoder, source: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over features, which two equal pre-activations in another order leave alone, and the reconstruction."""
    with torch.no_grad():
        code = transcoder.sparse_code(source)
        return code.dense(transcoder.dict_size).sum(dim=1), transcoder.reconstruct(code, source)[:, -1]


def _identity(name: str, layers: Sequence[ExportLayer], request: ExportRequest) -> dict[str, Any]:
    """What two exports share if one may take the other's place."""
    trained = [layer.trained for layer in layers]
    return {
        "format": name,
        "of": {str(layer.source.layer): layer.source.transcoder.name for layer in layers},
        "model": layers[0].about.model_name,
        "prefix": request.wish.prefix if request.wish.prefix != trained[0].dict_size else None,
    }


def now() -> str:
    """The time of an export."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def refuse_another(folder: Path, identity: dict[str, Any], *, fresh: bool) -> None:
    """Raises UsageError where ``folder`` holds anything but an earlier export of the same."""
    if not folder.exists():
        return
    try:
        earlier = read_json(folder / EXPORT_FILE)
    except NestcoderError:
        earlier = {}
    if earlier.get("written_by") != "nestcoder":
        what = "This folder has files that no export wrote."
        raise UsageError(what, where=folder, remedy="Export into another folder.")
    if not fresh and any(earlier.get(key) != value for key, value in identity.items()):
        what = f"This folder has another export: {earlier.get('of')} of {earlier.get('model')}."
        raise UsageError(what, where=folder, remedy="Replace it with --fresh, or export into another folder.")
