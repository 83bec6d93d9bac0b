"""Takes a cross-layer transcoder in circuit-tracer's form into a run, held against the caches of its layers.

From then on it is one like those trained here: evaluated, spliced, exported. Its config.json says under ``imported``
where it came from; without training settings, so ``train`` never goes on from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cache.config import CacheSettings
from cache.reader import CacheReader
from cache.stacked import stacked
from common import disk
from common.device import choose_device
from common.errors import MismatchError
from common.hashing import hash_file
from common.norm import NormAffine
from common.processes import locks
from common.progress import Progress
from common.run_layout import CONFIG_FILE
from evaluate.config import EvaluateSettings
from evaluate.interop.convert import reading
from evaluate.interop.intake import refuse_another
from evaluate.joint.opened import JointSource, open_readers
from evaluate.joint.rows import JointRows
from evaluate.reference import IMPORTED
from train.arrays.units import units_of
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.formats.cross_layer import save_cross_layer
from transcoder.formats.peers.circuit_tracer_clt import read_circuit_tracer_clt
from transcoder.transcoder import SourceView, Transcoder


@dataclass(frozen=True)
class JointImport:
    """What to take: the folder ``path``, into ``source.transcoder``; the rest as in ``ImportRequest``."""

    path: Path
    source: JointSource
    source_view: SourceView | None = None
    fresh: bool = False
    origin: str = ""
    dry_run: bool = False


def import_cross_layer(
    request: JointImport,
    *,
    device: str,
    progress: Progress,
    cache_settings: CacheSettings | None = None,
) -> dict[str, Any]:
    """What config.json says, having written it and the weights (not on a ``dry_run``).

    UsageError: no cache of a layer, or a run lies there. DamagedError: not what the layout promises. MismatchError:
    other layers or widths, or tensors that the caches do not hold.
    """
    out = request.source.transcoder
    refuse_another(out, fresh=request.fresh)
    device_name = str(choose_device(device))
    found = read_circuit_tracer_clt(request.path, source_view=request.source_view)
    layers = sorted(request.source.caches)
    if list(found.layers) != layers:
        what = f"The dictionary is of layers {_listed(found.layers)}, not of {_listed(layers)}."
        raise MismatchError(what, where=request.path, remedy="Name its layers, each with --layer.")
    readers = open_readers(request.source.caches, cache_settings, device=device_name)
    fitted = found.with_pieces([_fitted(found, number, reader) for number, reader in enumerate(readers)])
    stacked_reader = stacked(readers)
    rows = JointRows(stacked_reader, readers, EvaluateSettings(bootstrap=0), device=device_name, progress=progress)
    measured = rows.measure(fitted.on(device_name))
    config = {
        **found.config,
        "model": stacked_reader.identity.get("model"),
        "model_revision": stacked_reader.identity.get("model_revision"),
        "source_site": stacked_reader.identity.get("source_site"),
        "tokens_trained": None,
        "cache_fingerprint": stacked_reader.fingerprint,
        "cache_fingerprints": [reader.fingerprint for reader in readers],
        "target_scales": [units_of(reader, fitted.piece(0).source_view).target_scale for reader in readers],
        IMPORTED: {
            "format": "circuit-tracer",
            "origin": request.origin or str(request.path),
            "files": {file.name: hash_file(file) for file in sorted(request.path.glob("W_*.safetensors"))},
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "measured": {"rows": measured["tokens_used"], "fvu": measured["fvu"], "l0": measured["l0"]},
        },
    }
    if request.dry_run:
        return config | {"dict_size": fitted.dict_size, "activation": fitted.piece(0).rule.name}
    if request.fresh:
        disk.remove(out / CONFIG_FILE)
    with locks.lock(out / ".lock"):
        return save_cross_layer(fitted, out, config=config)


def _fitted(dictionary: CrossLayerTranscoder, number: int, reader: CacheReader) -> Transcoder:
    """A piece that reads rows as they are stored, or in the view that the cache has for it. Raises MismatchError."""
    piece = dictionary.piece(number)
    widths = (reader.d_source, reader.d_target)
    if (piece.d_source, dictionary.d_target) != widths:
        what = f"The dictionary maps {piece.d_source} dimensions to {dictionary.d_target}, the cache has {widths}."
        raise MismatchError(what, where=reader.path)
    source, target = (reader.identity.get(name) for name in ("source_site", "target_site"))
    if target != dictionary.config["target_site"]:
        what = f"The cache's target is {target}; the dictionary reconstructs {dictionary.config['target_site']}."
        raise MismatchError(what, where=reader.path)
    read = dictionary.config["source_site"]
    if source == read:
        return piece.replaced(source_view="mlp_in")  # as it is stored, whatever site that is
    if (source, read) != ("mlp_in", "ln2_normalized"):
        what = f"The cache's source is {source}; the dictionary reads {read}."
        raise MismatchError(what, where=reader.path, remedy=f"Harvest with source {read}.")
    return reading("mlp_in", piece, NormAffine.of_arrays(reader.arrays))


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
