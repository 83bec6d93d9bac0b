"""What lies in a runs folder, as plain data: an entry for every dictionary, finished or not, and for every cache.

A dictionary is a transcoder or an autoencoder of one layer, or what belongs to several: a cross-layer transcoder, or a
per-layer set that was measured as one (``evaluate/browse/several.py``). Only small files are read: config.json,
metrics.json, metrics.jsonl, summary.txt, a cache's manifest.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.run_layout import FEATURES_PAGE, METRICS_FILE, RunFolders
from evaluate.browse.entry import begun, names_of, reported, spliced_numbers
from evaluate.browse.files import Entry, link_to, read_object, relative
from evaluate.browse.several import several_layers

MANIFEST_FILE = "manifest.json"
_LAYER = re.compile(r"layer([0-9]{2,})")


def runs_below(runs: Path) -> dict[str, Any]:
    """``dictionaries`` (those of several layers last) and ``caches``, in the order of models, layers and names."""
    layers = list(_layers(runs))
    single = [_of_one_layer(runs, *layer, name) for layer in layers for name in names_of(layer[2])]
    return {
        "folder": runs.resolve().name,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "caches": [_cache(runs, *layer) for layer in layers if (layer[2].cache / MANIFEST_FILE).is_file()],
        "dictionaries": [*single, *several_layers(runs, single)],
    }


def _layers(runs: Path) -> Iterator[tuple[str, int, RunFolders]]:
    """Model folder, layer and its folders."""
    for folder in sorted(runs.glob("*/layer*")):
        match = _LAYER.fullmatch(folder.name)
        if match and folder.is_dir():
            yield folder.parent.name, int(match[1]), RunFolders(folder)


def _cache(runs: Path, model: str, layer: int, folders: RunFolders) -> Entry:
    entry: Entry = {"model": model, "layer": layer, "folder": relative(folders.cache, runs)}
    manifest = read_object(folders.cache / MANIFEST_FILE, entry)
    geometry = manifest.get("format") or {}
    return entry | {
        "fingerprint": manifest.get("fingerprint"),
        "dataset": _dataset((manifest.get("identity") or {}).get("dataset")),
        "train_rows": geometry.get("train_rows"),
        "held_out_rows": geometry.get("held_out_rows"),
    }


def _of_one_layer(runs: Path, model: str, layer: int, folders: RunFolders, name: str) -> Entry:
    entry: Entry = {"id": f"{model}/{layer}/{name}", "model": model, "layer": layer, "layers": [layer], "name": name}
    report = folders.report(name)
    metrics = read_object(report / METRICS_FILE, entry) if report.is_dir() else {}
    files = reported(runs, report, entry)
    return (
        begun(runs, folders.transcoder(name), entry)
        | ({"state": "evaluated"} | _measured(metrics) if metrics else {})
        | files
        | {"features": link_to(folders.features(name) / FEATURES_PAGE, runs)}
    )


def _measured(metrics: Mapping[str, Any]) -> Entry:
    """Of the report: all held-out rows, the evaluation rule."""
    spliced = metrics.get("language_model")
    absorption = metrics.get("absorption_first_letter") or {}
    forms = metrics.get("fvu_forms") or {}
    return {
        "date": metrics.get("evaluated_at"),
        "measured": "report",
        "prefixes": metrics.get("prefixes"),
        "fvu": metrics.get("fvu_per_prefix"),
        "whitened": (forms.get("whitened") or {}).get("per_prefix"),
        "l0": metrics.get("l0_per_prefix"),
        "dead": metrics.get("dead_fraction_per_prefix"),
        "absorption": absorption.get("score"),
        "no_absorption": absorption.get("reason"),
        "tokens_used": metrics.get("tokens_used"),
        **spliced_numbers(spliced),
    }


def _dataset(dataset: Any) -> str | None:
    named = dataset.get("name") or dataset.get("kind") if isinstance(dataset, dict) else dataset
    return None if named is None else str(named)
