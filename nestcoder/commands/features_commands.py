"""The ``features`` commands: each returns its result as JSON and as text for people."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UsageError
from common.run_layout import FEATURES_PAGE, check_of_one_layer, dictionaries_of_layer
from nestcoder.invocation import CommandResult
from nestcoder.progress import shown_progress
from nestcoder.stages.evaluate import run_features
from nestcoder.stages.joint import features_request, is_cross_layer
from nestcoder.text import as_lines, table

if TYPE_CHECKING:
    from evaluate.features.evidence import Evidence
    from nestcoder.invocation import Invocation

# Contexts of each kind: with the other facts of a feature they fit on a page of a terminal.
_SHOWN = {"strongest": 5, "uniform": 3}
# Relatives, tokens and logits of a feature that fit into a line of a terminal.
_SHOWN_COARSER = 3
_SHOWN_FINER = 5
_SHOWN_TOKENS = 4
_SHOWN_LOGITS = 5
# Lines of a search: they fit on a terminal without scrolling.
_FOUND = 30


def collect(
    invocation: "Invocation", layers: list[int], device: str, *, name: str, lm: bool, force: bool
) -> CommandResult:
    """Collect the evidence of each layer's transcoder ``name``."""
    with shown_progress() as progress:
        results = run_features(
            invocation.settings, layers, name=name, device=device, lm=lm, force=force, progress=progress
        )
    lines = [f"features: {invocation.folders(layer).features(name) / FEATURES_PAGE}" for layer in layers]
    if is_cross_layer(invocation.settings, layers, name):
        request = features_request(invocation.settings, layers, name)
        lines = [f"features: {request.joint.features(name) / FEATURES_PAGE} (with links to {len(layers)} layers)"]
    return CommandResult(results, "\n".join(lines))


def plan_collect(
    invocation: "Invocation", layers: list[int], device: str, *, name: str, lm: bool, force: bool
) -> CommandResult:
    """What ``collect`` would need for each layer: rows, bytes, minutes."""
    from common.distributed import read_ranks
    from evaluate.features.plan import plan_features

    plans: dict[int, dict[str, Any]] = {}
    if is_cross_layer(invocation.settings, layers, name):
        from evaluate.joint.features import plan_layers

        request = features_request(invocation.settings, layers, name)
        found = plan_layers(request, device=read_ranks().device(device), lm=invocation.settings.model if lm else None)
        plans = {layer: asdict(plan) for layer, plan in found.items()}
        layers = []
    else:
        check_of_one_layer(Path(invocation.settings.runs), invocation.settings.model, layers, name)
    for layer in layers:
        folders = invocation.folders(layer)
        found = plan_features(
            cache=folders.cache,
            cache_settings=invocation.settings.cache,
            transcoder=folders.transcoder(name),
            out=folders.features(name),
            settings=invocation.settings.features,
            device=read_ranks().device(device),
            lm=invocation.settings.model if lm else None,
            force=force,
        )
        plans[layer] = asdict(found)
    return CommandResult(plans, "\n\n".join(f"layer {layer}\n{as_lines(found)}" for layer, found in plans.items()))


def show(invocation: "Invocation", feature: str, name: str) -> CommandResult:
    """One feature's evidence."""
    from evaluate.features.text.page import feature_page

    layer, number = parse_feature(feature)
    page = feature_page(*_opened(invocation, layer, number, name))
    return CommandResult(page, "\n".join(_page_lines(page)))


def compare(invocation: "Invocation", features: tuple[str, ...], name: str) -> CommandResult:
    """Several features, one column each."""
    from evaluate.features.text.page import feature_page

    pages = [feature_page(*_opened(invocation, *parse_feature(feature), name)) for feature in features]
    heading = ["", *(page["id"] for page in pages)]
    rows = [[title, *(words(page) for page in pages)] for title, words in _COMPARED.items()]
    return CommandResult(pages, "\n".join(table(heading, rows)))


def similar(invocation: "Invocation", feature: str, name: str) -> CommandResult:
    """The features that are nearest to one feature, by direction and by common rows."""
    from evaluate.features.text.labels import label_of
    from evaluate.features.text.page import relatives

    layer, number = parse_feature(feature)
    evidence, number = _opened(invocation, layer, number, name)
    found = relatives(evidence, number)
    lines = [f"{feature}  {label_of(evidence, number)}"]
    for kind, title in _RELATIVES.items():
        rows = [
            [f"{layer}/{relative['feature']}", _score(relative), label_of(evidence, relative["feature"])]
            for relative in found[kind][:10]
        ]
        lines += ["", title, *table(["feature", "", "label"], rows)] if rows else []
    return CommandResult(found, "\n".join(lines))


def find(invocation: "Invocation", text: str, layer: int | None, name: str) -> CommandResult:
    """Features with ``text`` in their label or in a token they often fire on; the most exclusive first."""
    from evaluate.features.evidence import read_evidence
    from evaluate.features.text.find import find_features

    layers = [layer] if layer is not None else _layers_with(invocation, name)
    found: list[dict[str, Any]] = [
        {"id": f"{searched}/{hit.feature}", "label": hit.label, "firings": hit.firings, "share": hit.share}
        for searched in layers
        for hit in find_features(read_evidence(invocation.folders(searched).features(name)), text)
    ]
    if not found:
        return CommandResult(found, f"No feature has '{text}' in its label or tokens.")
    rows = [[hit["id"], f"{hit['firings']:,}", hit["label"]] for hit in found[:_FOUND]]
    more = [f"... and {len(found) - _FOUND:,} more (--json lists all)"] if len(found) > _FOUND else []
    return CommandResult(found, "\n".join([*table(["feature", "firings", "label"], rows), *more]))


def history(invocation: "Invocation", feature: str, name: str) -> CommandResult:
    """A feature at every step at which its training took samples, with the strongest samples."""
    from cache.open import open_cache
    from evaluate.features.history import as_data, history_of

    layer, number = parse_feature(feature)
    reader = open_cache(invocation.folders(layer).cache, invocation.settings.cache)
    run, read_layer = _sampled_run(invocation, layer, name)
    found = history_of(run, reader, number, read_layer)
    lines = [f"feature {feature}, on the first held-out rows"]
    for entry in found:
        lines += ["", f"step {entry.step:,}: {entry.firings:,} firings, largest {entry.largest:.4g}"]
        lines += [_sample_line(sample) for sample in entry.samples[: _SHOWN["uniform"]]]
    return CommandResult(as_data(found), "\n".join(lines))


def _sampled_run(invocation: "Invocation", layer: int, name: str) -> tuple[Path, int | None]:
    """The run ``name`` of a layer; where it has none, the cross-layer transcoder of that name whose features read the
    layer, with the layer. Raises UsageError where there are two of those."""
    from train.record.activation_samples import samples_folder

    folders = invocation.folders(layer)
    own = folders.transcoder(name)
    if own.is_dir():
        return own, None
    runs = sorted(folders.layer_folder.parent.glob(f"layers*/transcoder/{name}"))
    across = [run for run in runs if samples_folder(run, layer).is_dir()]
    if len(across) > 1:
        what = f"Features of two cross-layer transcoders '{name}' read layer {layer}; the other one is {across[0]}."
        raise UsageError(what, where=across[1], remedy="Rename the folder of one of them.")
    # Without samples the caller refuses, and names the run that is there.
    chosen = across or [run for run in runs if layer in _layers_read(run)]
    return (chosen[0], layer) if chosen else (own, None)


def _layers_read(run: Path) -> Sequence[int]:
    """The layers that a complete cross-layer transcoder reads; none of one that is not complete."""
    from transcoder.formats.native import has_both_files, read_config

    return read_config(run).get("layers", ()) if has_both_files(run) else ()


def _sample_line(sample: dict[str, Any]) -> str:
    values = [0.0] * len(sample["tokens"])
    values[sample["at"]] = sample["value"]
    return _context_line({"tokens": sample["tokens"], "at": sample["at"], "values": values})


_NUMBER = re.compile(r"[0-9]{1,9}")


def parse_feature(text: str) -> tuple[int, int]:
    """Layer and number of a feature that is written as 8/123. Raises UsageError."""
    layer, slash, number = text.partition("/")
    if not (slash and _NUMBER.fullmatch(layer) and _NUMBER.fullmatch(number)):
        raise UsageError(f"'{text}' is not a feature.", remedy="Write its layer and its number, for example 8/123.")
    return int(layer), int(number)


def _opened(invocation: "Invocation", layer: int, number: int, name: str) -> "tuple[Evidence, int]":
    from evaluate.features.evidence import made_of, read_evidence

    folder = invocation.folders(layer).features(name)
    evidence = read_evidence(folder)
    runs = Path(invocation.settings.runs)
    made_of(evidence, dictionaries_of_layer(runs, invocation.settings.model, layer, name), path=folder)
    if number >= evidence.dict_size:
        what = f"There is no feature {number}: the transcoder has {evidence.dict_size:,} features, counted from 0."
        raise UsageError(what, where=folder)
    return evidence, number


def _layers_with(invocation: "Invocation", name: str) -> list[int]:
    from common.run_layout import known_layers

    known = known_layers(Path(invocation.settings.runs), invocation.settings.model)
    layers = [layer for layer in known if invocation.folders(layer).features(name).is_dir()]
    if not layers:
        what = f"No layer of {invocation.settings.model} has feature evidence named '{name}'."
        raise UsageError(what, where=invocation.settings.runs, remedy="Run 'nestcoder features --layer N' first.")
    return layers


def _page_lines(page: dict[str, Any]) -> list[str]:
    lines = [f"feature {page['id']}  {page['label']}", ""]
    facts = {title: words(page) for title, words in _COMPARED.items() if title != "label"}
    width = max(map(len, facts))
    lines += [f"{title:<{width}}  {fact}" for title, fact in facts.items() if fact]
    for kind, count in _SHOWN.items():
        shown = page["contexts"][kind][:count]
        lines += ["", f"{kind}:", *map(_context_line, shown)] if shown else []
    coarser = page["relatives"]["coarser"][:_SHOWN_COARSER]
    finer = page["relatives"]["finer"][:_SHOWN_FINER]
    lines += ["", "coarser: " + _named(coarser, page)] if coarser else []
    lines += ["finer: " + _named(finer, page)] if finer else []
    return lines


def _named(relatives: list[dict[str, Any]], page: dict[str, Any]) -> str:
    layer = page["id"].partition("/")[0]
    return ", ".join(f"{layer}/{relative['feature']} ({_score(relative)})" for relative in relatives)


def _context_line(context: dict[str, Any]) -> str:
    from evaluate.features.text.labels import visible

    shown = ""
    for index, (token, value) in enumerate(zip(context["tokens"], context["values"], strict=True)):
        text = visible(token)
        if index == context["at"]:
            text = f"⟦{text}⟧"
        elif value > 0:
            text = f"‹{text}›"
        shown += text
    return f"  {context['values'][context['at']]:8.3f}  {shown}"


def _tokens(page: dict[str, Any], position: str) -> str:
    from evaluate.features.text.labels import quoted

    listed = page["tokens"][position][:_SHOWN_TOKENS]
    return ", ".join(f"{quoted(entry['token'])} {entry['share']:.0%} (x {entry['lift']:.3g})" for entry in listed)


def _logits(page: dict[str, Any], direction: str) -> str:
    from evaluate.features.text.labels import quoted

    listed = (page["logits"] or {}).get(direction, [])[:_SHOWN_LOGITS]
    return ", ".join(f"{quoted(entry['token'])} {entry['logit']:+.2f}" for entry in listed)


def _score(relative: dict[str, Any]) -> str:
    if "cosine" in relative:
        return f"cosine {relative['cosine']:.2f}"
    return f"P {relative['given']:.2f}, lift {relative['lift']:.3g}"


_Words = Callable[[dict[str, Any]], str]
_COMPARED: dict[str, _Words] = {
    "label": lambda page: page["label"],
    "prefix": lambda page: f"{page['prefix']:,}",
    "firings": lambda page: f"{page['firings']:,} ({page['density']:.3%} of tokens)",
    "largest": lambda page: f"{page['largest']:.4g} (median {page['percentiles']['50']:.4g})",
    "FVU lost": lambda page: f"{page['fvu_lost']:.2e} (in its prefix {page['fvu_lost_prefix']:.2e})",
    "writes to": lambda page: ", ".join(
        f"layer {layer['layer']} {layer['share']:.1%}" for layer in page["writes"] or []
    ),
    "fires on": lambda page: _tokens(page, "on"),
    "after": lambda page: _tokens(page, "before"),
    "before": lambda page: _tokens(page, "after"),
    "lifts": lambda page: _logits(page, "raised"),
    "lowers": lambda page: _logits(page, "lowered"),
}

_RELATIVES = {
    "decoder": "Nearest by decoder",
    "encoder": "Nearest by encoder",
    "near": "Fire on the same rows",
    "coarser": "Coarser, in shorter prefixes",
    "finer": "Finer, in longer prefixes",
}
