"""Evaluates dictionaries of the same layers on the same held-out rows, beside one another, and writes one report.

A per-layer set is measured as what it is: a cross-layer transcoder of which no layer writes to another. So all numbers
are the same formulas on the same rows. With ``lm``, all layers are spliced into the language model at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cache.config import CacheSettings
from cache.open import open_cache
from cache.reader import CacheReader
from cache.stacked import stacked
from common.device import choose_device
from common.distributed import Ranks
from common.errors import UsageError
from common.progress import Progress
from common.run_layout import CONFIG_FILE, METRICS_FILE, RunFolders
from evaluate.config import EvaluateSettings
from evaluate.joint.absorption import JointAbsorption, mean_scores
from evaluate.joint.opened import check_caches
from evaluate.joint.rows import JointRows
from evaluate.joint.table import joint_table
from evaluate.reference import check_belongs
from evaluate.report import report
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.formats.cross_layer import load_cross_layer
from transcoder.formats.native import load_transcoder

_OF_CACHE = ("model", "model_revision", "source_site", "target_site", "dataset", "context", "provenance")


@dataclass(frozen=True)
class Candidate:
    """A dictionary to measure: ``joint`` is the folder of a cross-layer one, ``single`` those of a set, by layer."""

    name: str
    joint: Path
    single: Mapping[int, Path]


def evaluate_layers(
    *,
    caches: Mapping[int, Path],
    candidates: Sequence[Candidate],
    out: Path,
    settings: EvaluateSettings,
    device: str,
    lm: str | None,
    progress: Progress,
    cache_settings: CacheSettings | None = None,
) -> dict[str, Any]:
    """The contents of metrics.json, written with summary.txt into ``out``.

    First-letter absorption is scored where probe caches lie beside the layers' caches.
    Raises UsageError, DamagedError, MismatchError (caches whose rows are not the same tokens, a dictionary of others).
    """
    device_name = str(choose_device(device))
    readers = {layer: open_cache(caches[layer], cache_settings, device=device_name) for layer in sorted(caches)}
    stacked_reader = stacked(list(readers.values()))
    dictionaries = {
        candidate.name: _opened(candidate, readers, stacked_reader).on(device_name) for candidate in candidates
    }
    rows = JointRows(stacked_reader, list(readers.values()), settings, device=device_name, progress=progress)
    if not rows.held_out.counted:
        raise UsageError("The caches have no held-out rows.", remedy="Harvest with held_out_tokens above 0.")
    absorption = JointAbsorption(readers, {layer: RunFolders.of_cache(caches[layer]).probe() for layer in readers})
    measured = {name: _heading(dictionary) | rows.measure(dictionary) for name, dictionary in dictionaries.items()}
    for name, dictionary in dictionaries.items():
        measured[name] |= _absorbed(absorption, dictionary)
    spliced = _spliced(lm, dictionaries, readers, rows, settings, device=device, progress=progress) if lm else {}
    metrics = {
        "version": report.VERSION,
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "layers": list(readers),
        "cache": {"fingerprint": stacked_reader.fingerprint}
        | {name: stacked_reader.identity.get(name) for name in _OF_CACHE},
        "documents": rows.held_out.documents,
        "tokens_masked": rows.held_out.masked,
        "dictionaries": {name: fields | {"language_model": spliced.get(name)} for name, fields in measured.items()},
    }
    ranks = Ranks.current()
    if ranks.rank == 0:
        files = {METRICS_FILE: report.as_json(metrics), "summary.txt": joint_table(metrics).encode() + b"\n"}
        if earlier := report.write_report(out, files):
            progress.note(f"The earlier report was moved to {earlier}.")
    ranks.wait()
    return metrics


def _opened(
    candidate: Candidate, readers: Mapping[int, CacheReader], stacked_reader: CacheReader
) -> CrossLayerTranscoder:
    """The dictionary, seen to belong to these caches."""
    if (candidate.joint / CONFIG_FILE).is_file():
        found = load_cross_layer(candidate.joint)
        check_caches(found, stacked_reader, path=candidate.joint)
        found.name = candidate.name
        return found
    missing = [layer for layer, folder in candidate.single.items() if not (folder / CONFIG_FILE).is_file()]
    if missing:
        what = f"No cross-layer transcoder of these layers is named '{candidate.name}', and none of layer {missing[0]}."
        raise UsageError(what, where=candidate.joint, remedy="Train it first: nestcoder train --layer all.")
    pieces = {layer: load_transcoder(folder) for layer, folder in candidate.single.items()}
    for layer, piece in pieces.items():
        check_belongs(piece, readers[layer], path=candidate.single[layer], force=False)
        if piece.column:
            raise UsageError("An autoencoder is not measured together with others.", where=candidate.single[layer])
    if len({(piece.prefixes, piece.W_skip is None) for piece in pieces.values()}) > 1:
        what = f"The layers of '{candidate.name}' have different prefixes, or only some of them a skip."
        raise UsageError(what, where=candidate.joint, remedy="Train them with the same settings, under one name.")
    return CrossLayerTranscoder.of_set(pieces, name=candidate.name)


def _heading(dictionary: CrossLayerTranscoder) -> dict[str, Any]:
    crossing = dictionary.crossing()
    pieces = {str(layer): dictionary.piece(number) for number, layer in enumerate(dictionary.layers)}
    return {
        "weights": dictionary.config.get("weights")
        or {layer: own.config.get("weights") for layer, own in pieces.items()},
        "window": dictionary.reach.window,
        "dict_size": dictionary.dict_size,
        "prefixes": list(dictionary.prefixes),
        "top_k": dictionary.top_k,
        "parameters": sum(array.numel() for array in dictionary.parameters()),
        "crossing": sum(crossing) / len(crossing),
        "crossing_per_layer": crossing,
    }


def _absorbed(absorption: JointAbsorption, dictionary: CrossLayerTranscoder) -> dict[str, Any]:
    per_layer = absorption.scores(dictionary)
    named = zip(dictionary.layers, per_layer, strict=True)
    return {
        "absorption_per_prefix": mean_scores(per_layer, prefixes=len(dictionary.prefixes)),
        "absorption_first_letter_per_layer": [{"layer": layer, **fields} for layer, fields in named],
    }


def _spliced(
    model: str,
    dictionaries: Mapping[str, CrossLayerTranscoder],
    readers: Mapping[int, CacheReader],
    rows: JointRows,
    settings: EvaluateSettings,
    *,
    device: str,
    progress: Progress,
) -> dict[str, dict[str, Any]]:
    """What the model loses with all layers of each dictionary in place of its MLPs."""
    # Only here does evaluation meet a language model; everything else runs without transformers.
    from evaluate.joint.stand_in import NOT_CAUSAL, CrossLayerStandIn
    from evaluate.replay import Replay
    from evaluate.spliced.loss import SplicedModel, ablations
    from evaluate.spliced.splicer import open_splicer

    splicer = open_splicer(model, readers, device=device)
    replay = Replay(rows.held_out, 1, device, progress)
    measuring = SplicedModel(splicer, next(iter(readers.values())), replay, settings)
    norms = [splicer.model.norm(layer) for layer in readers]
    ablated = ablations({layer: rows.means[number].float() for number, layer in enumerate(readers)})
    found: dict[str, dict[str, Any]] = {}
    for name, dictionary in dictionaries.items():
        if dictionary.over_layers:
            progress.note(f"{NOT_CAUSAL.format(name=name)}.")
            continue
        on_model = dictionary.on(splicer.model.device)
        stand_ins = [
            CrossLayerStandIn(on_model, norms, index=index).replacements() for index in range(len(dictionary.prefixes))
        ]
        found[name] = measuring.measure_replacements([*ablated, *stand_ins], name=name)[0]
    return found
