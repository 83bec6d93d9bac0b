"""What lies in a runs folder, as plain data: an entry for every transcoder, finished or not, and for every cache.

Only small files are read: config.json, metrics.json, metrics.jsonl, summary.txt, a cache's manifest. A file that does
not read is a ``problem`` of its entry, never of the others. Paths are relative to the runs folder, for links.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.errors import NestcoderError
from common.reading import read_file
from common.run_layout import (
    CHECKPOINTS,
    CONFIG_FILE,
    FEATURES_PAGE,
    LOG_FILE,
    METRICS_FILE,
    RunFolders,
    is_name,
)
from train.record.log import read_log
from transcoder.formats.files.safe import read_json

SUMMARY_FILE = "summary.txt"
MANIFEST_FILE = "manifest.json"
_LAYER = re.compile(r"layer([0-9]{2,})")
_DATED = re.compile(r"\.\d{4}-\d\d-\d\dT")
_POINTS = 160
"""Of each curve over training that are kept: more than a plot has room for is only weight."""
_LOGGED = ("batch_fvu", "held_out_fvu", "l0", "dead", "loss", "aux_loss", "gradient_norm", "lr")
# A summary of ours has a few kB; whatever is much larger is none, and would swell the page.
_SUMMARY_BYTES = 1 << 18

Entry = dict[str, Any]


def runs_below(runs: Path) -> dict[str, Any]:
    """``transcoders`` and ``caches`` of the folder, in the order of models, layers and names."""
    layers = list(_layers(runs))
    return {
        "folder": runs.resolve().name,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "caches": [_cache(runs, *layer) for layer in layers if (layer[2].cache / MANIFEST_FILE).is_file()],
        "transcoders": [_transcoder(runs, *layer, name) for layer in layers for name in _names(layer[2])],
    }


def _layers(runs: Path) -> Iterator[tuple[str, int, RunFolders]]:
    """Model folder, layer and its folders."""
    for folder in sorted(runs.glob("*/layer*")):
        match = _LAYER.fullmatch(folder.name)
        if match and folder.is_dir():
            yield folder.parent.name, int(match[1]), RunFolders(folder)


def _names(folders: RunFolders) -> list[str]:
    """Transcoders that have begun, those of a sweep after their first one."""
    top = folders.layer_folder / "transcoder"
    signs = (CONFIG_FILE, LOG_FILE, CHECKPOINTS)
    found = {path.parent.relative_to(top).as_posix() for sign in signs for path in top.glob(f"**/{sign}")}
    return sorted(name for name in found if is_name(name) and CHECKPOINTS not in name.split("/"))


def _cache(runs: Path, model: str, layer: int, folders: RunFolders) -> Entry:
    entry: Entry = {"model": model, "layer": layer, "folder": _relative(folders.cache, runs)}
    manifest = _read(folders.cache / MANIFEST_FILE, entry)
    geometry = manifest.get("format") or {}
    return entry | {
        "fingerprint": manifest.get("fingerprint"),
        "dataset": _dataset((manifest.get("identity") or {}).get("dataset")),
        "train_rows": geometry.get("train_rows"),
        "held_out_rows": geometry.get("held_out_rows"),
    }


def _transcoder(runs: Path, model: str, layer: int, folders: RunFolders, name: str) -> Entry:
    entry: Entry = {"id": f"{model}/{layer}/{name}", "model": model, "layer": layer, "name": name}
    folder = folders.transcoder(name)
    config = _read(folder / CONFIG_FILE, entry) if (folder / CONFIG_FILE).is_file() else {}
    metrics = _read(folders.report(name) / METRICS_FILE, entry) if folders.report(name).is_dir() else {}
    log = _log(folder / LOG_FILE, entry)
    state = "evaluated" if metrics else "trained" if config else "in training"
    return (
        entry
        | {"state": state, "folder": _relative(folder, runs), "log": _curves(log)}
        | _trained(config, log)
        | (_measured(metrics) if metrics else _sampled(config, log))
        | {
            "summary": _text(folders.report(name) / SUMMARY_FILE, entry),
            "report": [_relative(path, runs) for path in report_files(folders.report(name))],
            "earlier": _earlier(runs, folders.report(name)),
            "features": _link(folders.features(name) / FEATURES_PAGE, runs),
        }
    )


def _trained(config: Mapping[str, Any], log: list[dict[str, Any]]) -> Entry:
    last = log[-1] if log else {}
    return {
        "date": config.get("completed_at"),
        "activation": config.get("activation"),
        "top_k": config.get("top_k"),
        "dict_size": config.get("dict_size"),
        "prefixes": config.get("prefixes"),
        "tokens": config.get("tokens_trained", last.get("tokens")),
        "steps": config.get("steps", last.get("step")),
        "seed": config.get("seed"),
    }


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
        "delta": [prefix.get("delta") for prefix in spliced["per_prefix"]] if spliced else None,
        "tokens_used": metrics.get("tokens_used"),
    }


def _sampled(config: Mapping[str, Any], log: list[dict[str, Any]]) -> Entry:
    """Of the log: the sample of held-out rows that checkpoints are measured on, and the last training batch."""
    fvu = _last(log, "held_out_fvu_per_prefix")
    l0 = _last(log, "l0_per_prefix")
    dead = config.get("dead", _last(log, "dead"))
    return {
        "measured": "log" if fvu or l0 else None,
        "fvu": fvu,
        "l0": l0,
        "dead": None if dead is None else [dead],
        "absorption": None,
        "delta": None,
    }


def _last(log: Iterable[Mapping[str, Any]], name: str) -> Any:
    return next((line[name] for line in reversed(list(log)) if name in line), None)


def _log(path: Path, entry: Entry) -> list[dict[str, Any]]:
    try:
        return read_log(path) if path.is_file() else []
    except (OSError, ValueError) as error:
        entry["problem"] = f"{path.name} does not read: {error}"
        return []


def _curves(log: list[dict[str, Any]]) -> dict[str, list[list[Any]]]:
    """(step, value) pairs of each metric over training, thinned to those that a plot can show."""
    curves: dict[str, list[list[Any]]] = {}
    for name in _LOGGED:
        points = [[line["step"], float(f"{line[name]:.4g}")] for line in log if isinstance(line.get(name), float)]
        if points:
            step = -(-len(points) // _POINTS)
            # The last point is where the training stands, so it is never thinned away.
            curves[name] = [*points[:-1:step], points[-1]]
    return curves


def report_files(folder: Path) -> list[Path]:
    """The files of a report, plots first."""
    found = [path for path in folder.glob("*") if path.suffix in {".svg", ".txt", ".json"} and path.is_file()]
    return sorted(found, key=lambda path: (path.suffix != ".svg", path.name))


def _earlier(runs: Path, report: Path) -> list[Entry]:
    """Reports that later ones have replaced, newest first."""
    found: list[Entry] = []
    for folder in sorted(report.parent.glob(f"{report.name}.*"), reverse=True):
        if _DATED.match(folder.name.removeprefix(report.name)):
            entry: Entry = {"folder": _relative(folder, runs)}
            metrics = _read(folder / METRICS_FILE, entry)
            found.append(entry | {"date": metrics.get("evaluated_at"), "fvu": metrics.get("fvu")})
    return found


def _read(path: Path, entry: Entry) -> dict[str, Any]:
    """A JSON object; empty where it does not read, which ``entry`` then says."""
    try:
        found = read_json(path)
    except NestcoderError as error:
        entry["problem"] = f"{path.name}: {error.what}"
        return {}
    return found


def _text(path: Path, entry: Entry) -> str | None:
    try:
        data = read_file(path, limit_bytes=_SUMMARY_BYTES)
    except NestcoderError as error:
        entry["problem"] = f"{path.name}: {error.what}"
        return None
    return None if data is None else data.decode(errors="replace")


def _dataset(dataset: Any) -> str | None:
    named = dataset.get("name") or dataset.get("kind") if isinstance(dataset, dict) else dataset
    return None if named is None else str(named)


def _link(path: Path, runs: Path) -> str | None:
    return _relative(path, runs) if path.is_file() else None


def _relative(path: Path, runs: Path) -> str:
    return path.relative_to(runs).as_posix()
