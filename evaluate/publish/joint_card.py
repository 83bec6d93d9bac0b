"""What the card says of several layers at once: of a cross-layer transcoder all of it, of a set a part.

Everything is read from config.json and from the metrics.json of a report on these layers; FVU and L0 of a prefix are
means over layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluate.publish.card import (
    TAGS,
    CardOf,
    as_card,
    closing_lines,
    dataset_words,
    front_matter,
    hub_dataset,
    limits_of,
    model_words,
    training_lines,
)

_LIMITS = (
    "What a feature writes to later layers may stand for several steps of the model; whether circuits of such features "
    "are the model's own is disputed.",
)


@dataclass(frozen=True)
class PublishedLayers:
    """A dictionary of several layers, or a set of them: what ``fields`` its report has of it, beside all that it says
    of rows and ``layers`` in ``metrics``. ``folder`` is where it lies in the repository."""

    folder: str
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    fields: Mapping[str, Any]

    @property
    def layers(self) -> list[int]:
        """By their numbers in the model."""
        return list(self.metrics["layers"])


def joint_card(card: CardOf, found: PublishedLayers) -> str:
    """README.md of the repository of a cross-layer transcoder."""
    cache = found.metrics["cache"]
    model = model_words(card, cache)
    tags = ["cross-layer-transcoder", *TAGS]
    front = front_matter(card, [_result(found)], tags=tags, datasets=[hub_dataset(cache)])
    lines = [
        f"# {card.repository}",
        "",
        f"Nested-prefix cross-layer transcoder of **{model}**, {_named(found.layers)}: a feature reads "
        f"`{cache['source_site']}` of one layer and writes to `{cache['target_site']}` of {_reach(found)}. The first "
        "features of every layer together are a smaller dictionary, as long as each prefix.",
        "",
        "```python",
        "import nestcoder",
        "",
        f'dictionary = nestcoder.load_cross_layer("hf:{card.repository}/{found.folder}")',
        "targets = dictionary.reconstructions(sources)  # of each layer what its MLP reads, (rows, d_source)",
        "```",
        "",
        f"## {_named(found.layers).capitalize()}",
        "",
        *training_lines(found.config, features="features a layer", text=dataset_words(cache)),
        "",
        *prefix_lines(found),
        "",
        *_layer_lines(found),
        "",
    ]
    limits = [*limits_of(cache), *_LIMITS]
    return as_card(front, [*lines, *closing_lines(card, model, limits)])


def set_lines(found: PublishedLayers) -> list[str]:
    """A chapter on all layers of a set at once."""
    return [f"## {_named(found.layers).capitalize()} at once", "", *prefix_lines(found), ""]


def prefix_lines(found: PublishedLayers) -> list[str]:
    """A line a prefix, and what was measured on what."""
    fields = found.fields
    spliced = fields["language_model"]
    intervals = fields.get("fvu_interval_per_prefix")
    columns = ["features a layer", "mean FVU", "95 %", "L0", *(["KL", "top-1", "delta CE"] if spliced else [])]
    lines = [_row(columns), _row(["---"] * len(columns))]
    for index, prefix in enumerate(fields["prefixes"]):
        l0 = [by_prefix[index] for by_prefix in fields["l0_per_layer_and_prefix"]]
        cells = [
            f"{prefix:,}",
            f"{fields['fvu_per_prefix'][index]:.4f}",
            "-".join(f"{bound:.4f}" for bound in intervals[index]) if intervals else "",
            f"{sum(l0) / len(l0):.1f}",
        ]
        if spliced:
            numbers = spliced["per_prefix"][index]
            cells += [f"{numbers['kl']:.4f}", f"{numbers['top1']:.1%}", f"{numbers['delta']:+.4f}"]
        lines.append(_row(cells))
    rows = f"On {fields['tokens_used']:,} held-out tokens of {found.metrics['documents']:,} documents"
    model = "what the model loses was not measured"
    if spliced:
        model = "KL and delta CE in nats a token, with all of these layers spliced into the model at once"
    return [*lines, "", f"{rows}; FVU and L0 are means over layers, intervals resample documents; {model}."]


def _layer_lines(found: PublishedLayers) -> list[str]:
    """A line a layer."""
    fields = found.fields
    prefixes = fields["prefixes"]
    absorbed = [own.get("score") for own in fields.get("absorption_first_letter_per_layer") or []]
    has_scores = any(score is not None for score in absorbed)
    columns = ["layer", *(f"FVU of {prefix:,}" for prefix in prefixes), "L0", "silent", "decoder that crosses"]
    columns += ["absorption"] if has_scores else []
    lines = [_row(columns), _row(["---"] * len(columns))]
    for number, layer in enumerate(found.layers):
        cells = [
            str(layer),
            *(f"{value:.4f}" for value in fields["fvu_per_layer_and_prefix"][number]),
            f"{fields['l0_per_layer_and_prefix'][number][-1]:.1f}",
            f"{fields['dead_per_layer'][number]:.1%}",
            f"{fields['crossing_per_layer'][number]:.1%}",
        ]
        if has_scores:
            cells.append("?" if absorbed[number] is None else f"{absorbed[number]:.3f}")
        lines.append(_row(cells))
    return lines


def _result(found: PublishedLayers) -> dict[str, Any]:
    """The entry of the model index."""
    fields = found.fields
    values: list[dict[str, Any]] = []
    for index, prefix in enumerate(fields["prefixes"]):
        name = f"of {prefix} features a layer"
        values.append({"type": "fvu", "name": f"mean fvu {name}", "value": fields["fvu_per_prefix"][index]})
        if fields["language_model"]:
            spliced = fields["language_model"]["per_prefix"][index]
            values.append({"type": "kl", "name": f"kl {name}", "value": spliced["kl"]})
            values.append({"type": "delta_ce", "name": f"rise in loss with {name[3:]}", "value": spliced["delta"]})
    text = {"type": "text", "name": dataset_words(found.metrics["cache"])}
    return {"task": {"type": "other", "name": _named(found.layers)}, "dataset": text, "metrics": values}


def _named(layers: Sequence[int]) -> str:
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"


def _reach(found: PublishedLayers) -> str:
    window = found.fields["window"]
    if not window:
        return "that layer alone"
    # Of two layers "all later ones" is one: the next.
    if window >= len(found.layers) - 1 > 1:
        return "that layer and all later ones"
    return f"that layer and the next {window}" if window > 1 else "that layer and the next"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
