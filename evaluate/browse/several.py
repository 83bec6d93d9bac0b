"""Entries of what belongs to several layers: cross-layer transcoders, and per-layer sets that were measured as one.

    <model>/layers00-11/transcoder/<name>/     a cross-layer transcoder
    <model>/layers00-11/report/<name>/         it, and what was measured beside it: FVU and L0, layer by layer
    <model>/together/<name>/                   a set of transcoders or autoencoders, in the language model at once

Numbers of a prefix are means over layers; ``per_layer`` has those of each.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.run_layout import FEATURES_PAGE, METRICS_FILE, RunFolders, layers_of
from evaluate.browse.entry import begun, names_of, reported, spliced_numbers
from evaluate.browse.files import Entry, link_to, read_object
from evaluate.joint.reports import is_current, newest_reports

_OF_TRAINING = ("activation", "top_k", "dict_size", "prefixes", "tokens", "steps", "seed")
"""What a set says of its training is what its first layer says."""


def several_layers(runs: Path, single: Sequence[Entry]) -> list[Entry]:
    """In the order of models, layers and names; ``single`` are the entries of one layer each."""
    known = {(entry["model"], entry["layer"], entry["name"]): entry for entry in single}
    found: dict[tuple[str, tuple[int, ...], str], Entry] = {}
    for folder in sorted(runs.glob("*/layers*")):
        layers = layers_of(folder)
        if layers and folder.is_dir():
            for entry in _of_layers(runs, RunFolders(folder), layers, known):
                found[entry["model"], tuple(layers), entry["name"]] = entry
    for entry in _spliced_sets(runs, known):
        key = entry["model"], tuple(entry["layers"]), entry["name"]
        # A report on the layers' rows says more; what the model loses it may not say.
        there = found.setdefault(key, entry)
        if there["delta"] is None:
            there |= {name: entry[name] for name in ("delta", "kl", "top1")}
    return [found[key] for key in sorted(found)]


def _of_layers(
    runs: Path, folders: RunFolders, layers: list[int], known: Mapping[tuple[str, int, str], Entry]
) -> Iterator[Entry]:
    model = folders.layer_folder.parent.name
    trained = names_of(folders)
    reports = newest_reports(folders.layer_folder / "report")
    for name in sorted({*trained, *reports}):
        entry = _named(model, layers, name)
        if name in trained:
            entry = begun(runs, folders.transcoder(name), entry) | {"kind": "cross-layer"}
        else:
            entry |= _of_set([known.get((model, layer, name)) for layer in layers])
        report, metrics = reports.get(name, (folders.report(name), {}))
        links = [link_to(_features(runs, model, layer, name), runs) for layer in layers]
        if report.is_dir() and not metrics:
            read_object(report / METRICS_FILE, entry)
        try:
            entry |= _measured(metrics, name, links) if metrics else {"per_layer": _linked(layers, links)}
        except (KeyError, TypeError, IndexError, ValueError, AttributeError):
            entry |= {"problem": f"{METRICS_FILE} is no report on several layers", "per_layer": _linked(layers, links)}
        yield (
            entry | reported(runs, report, entry) | {"features": link_to(folders.features(name) / FEATURES_PAGE, runs)}
        )


def _named(model: str, layers: Sequence[int], name: str) -> Entry:
    gaps = list(layers) != list(range(layers[0], layers[-1] + 1))
    named = ",".join(map(str, layers)) if gaps else f"{layers[0]}-{layers[-1]}"
    return {
        "id": f"{model}/{named}/{name}",
        "model": model,
        "layer": layers[0],
        "layers": list(layers),
        "name": name,
    }


def _of_set(layers: Sequence[Entry | None]) -> Entry:
    """What a set's layers, as far as they are there, say of its training."""
    there = [entry for entry in layers if entry]
    first = there[0] if there else {}
    return {
        "kind": "sae set" if first.get("kind") == "sae" else "set",
        "state": "evaluated",
        "folder": None,
        "log": {},
        **{name: first.get(name) for name in _OF_TRAINING},
    }


def _measured(metrics: Mapping[str, Any], name: str, links: Sequence[str | None]) -> Entry:
    fields = metrics["dictionaries"][name]
    layers = metrics["layers"]
    absorbed = fields.get("absorption_first_letter_per_layer") or [{} for _ in layers]
    columns = {
        "fvu": fields["fvu_per_layer_and_prefix"],
        "l0": fields["l0_per_layer_and_prefix"],
        "dead": fields["dead_per_layer"],
        "crossing": fields["crossing_per_layer"],
        "absorption": [own.get("score") for own in absorbed],
    }
    per_layer = _linked(layers, links)
    for key, values in columns.items():
        for own, value in zip(per_layer, values, strict=True):
            own[key] = value
    return {
        "state": "evaluated",
        "date": metrics.get("evaluated_at"),
        "measured": "report",
        "window": fields["window"],
        "top_k": fields["top_k"],
        "dict_size": fields["dict_size"],
        "prefixes": fields["prefixes"],
        "fvu": fields["fvu_per_prefix"],
        "l0": _means(fields["l0_per_layer_and_prefix"]),
        "dead": _means([[share] for share in fields["dead_per_layer"]]),
        "crossing": fields["crossing"],
        "absorption": (fields.get("absorption_per_prefix") or [None])[-1],
        "tokens_used": fields["tokens_used"],
        "per_layer": per_layer,
        **spliced_numbers(fields["language_model"]),
    }


def _spliced_sets(runs: Path, known: Mapping[tuple[str, int, str], Entry]) -> Iterator[Entry]:
    """Sets that were spliced into the language model at once; FVU and L0 are of the layers' own reports."""
    for path in sorted(runs.glob(f"*/together/**/{METRICS_FILE}")):
        if not is_current(path.parent):
            continue
        model = path.relative_to(runs).parts[0]
        name = path.parent.relative_to(runs / model / "together").as_posix()
        entry: Entry = {}
        metrics = read_object(path, entry)
        try:
            layers = sorted(own["layer"] for own in metrics["layers"])
            numbers = spliced_numbers(metrics["language_model"])
            prefixes = metrics["layers"][0]["prefixes"]
        except (KeyError, TypeError, IndexError, AttributeError):
            continue  # none of ours, or damaged: 'nestcoder verify' names it
        own = [known.get((model, layer, name)) for layer in layers]
        links = [link_to(_features(runs, model, layer, name), runs) for layer in layers]
        yield (
            _named(model, layers, name)
            | _of_set(own)
            | {"date": metrics.get("evaluated_at"), "prefixes": prefixes, "features": None, "tokens_used": None}
            | {"measured": "layers", "absorption": None}
            | _of_reports(own, links, layers)
            | numbers
            | reported(runs, path.parent, entry)
            | entry
        )


def _of_reports(entries: Sequence[Entry | None], links: Sequence[str | None], layers: Sequence[int]) -> Entry:
    """What every layer's own report says, and the means over layers where all were measured alike."""
    per_layer = _linked(layers, links)
    measured = [entry for entry in entries if entry and entry["measured"] == "report" and entry["fvu"]]
    for own in per_layer:
        for entry in measured:
            if entry["layer"] == own["layer"]:
                own |= {"fvu": entry["fvu"], "l0": entry["l0"], "dead": (entry["dead"] or [None])[-1]}
    is_complete = len(measured) == len(layers) and len({len(entry["fvu"]) for entry in measured}) == 1
    dead = [own["dead"] for own in per_layer if own.get("dead") is not None]
    return {
        "per_layer": per_layer,
        "fvu": _means([entry["fvu"] for entry in measured]) if is_complete else None,
        "l0": _means([entry["l0"] for entry in measured]) if is_complete else None,
        "dead": [sum(dead) / len(dead)] if is_complete and len(dead) == len(layers) else None,
    }


def _linked(layers: Sequence[int], links: Sequence[str | None]) -> list[Entry]:
    return [{"layer": layer, "features": link} for layer, link in zip(layers, links, strict=True)]


def _features(runs: Path, model: str, layer: int, name: str) -> Path:
    return RunFolders(runs / model / f"layer{layer:02d}").features(name) / FEATURES_PAGE


def _means(by_layer: Sequence[Sequence[float]]) -> list[float]:
    """Prefix by prefix, over layers."""
    return [sum(values) / len(values) for values in zip(*by_layer, strict=True)]
