"""The model card of published dictionaries: all that it says is read from their config.json and metrics.json.

Its front matter is what the Hub reads: licence, base model, datasets, tags, and a model index with the numbers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TAGS = ("transcoder", "matryoshka", "sparse-autoencoder", "mechanistic-interpretability")
_NUMBERS = ("fvu_per_prefix", "l0_per_prefix")
LIMITS = (
    "A dictionary explains what its layer computes on text like the one that it was trained and measured on.",
    "FVU of different layers, models or L0 do not compare.",
    "A feature's label is what it fires on; it is no claim about what the model does with it.",
)


@dataclass(frozen=True)
class PublishedLayer:
    """One layer's dictionary, with the documents that tell of it."""

    layer: int
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class PublishedExport:
    """A folder for another tool, with what its EXPORT.json records of each layer."""

    folder: str
    format: str
    layers: Mapping[int, Mapping[str, Any]]

    def line(self) -> str:
        """A row of the card's table; the numbers of several layers are their range."""
        exactness = ", ".join(sorted({str(record["exactness"]) for record in self.layers.values()}))
        prefix = {record["prefix"]["size"] for record in self.layers.values() if record.get("prefix")}
        size = ", ".join(f"{number:,}" for number in sorted(prefix)) or "all"
        after = [record["held_out"]["after"] for record in self.layers.values()]
        fvu = _range([numbers["fvu"] for numbers in after], 4)
        l0 = _range([numbers["l0"] for numbers in after], 1)
        return f"| `{self.folder}/` | {self.format} | {size} | {exactness} | {fvu} | {l0} |"


@dataclass(frozen=True)
class CardOf:
    """What a card is told by whoever publishes; ``exported`` are folders for other tools that lie beside ours."""

    repository: str
    license_name: str
    base_model: str | None = None
    exported: Sequence[PublishedExport] = ()


def model_card(card: CardOf, layers: Sequence[PublishedLayer], *, of_all: Sequence[str] = ()) -> str:
    """README.md of a repository of dictionaries of one layer each; ``of_all`` are lines on all of them at once."""
    tags = [tag for tag in TAGS if tag != "transcoder"] if _are_autoencoders(layers) else TAGS
    datasets = [hub_dataset(layer.metrics["cache"]) for layer in layers]
    front = front_matter(card, [_result(layer) for layer in layers], tags=tags, datasets=datasets)
    return as_card(front, _body(card, layers, of_all))


def as_card(front: Sequence[str], body: Sequence[str]) -> str:
    """The file."""
    return "\n".join(["---", *front, "---", "", *body]) + "\n"


def front_matter(
    card: CardOf, results: Sequence[Mapping[str, Any]], *, tags: Sequence[str], datasets: Sequence[str | None]
) -> list[str]:
    """YAML, every value as JSON, which is YAML too. ``results`` are the entries of the model index."""
    formats = {export.format for export in card.exported}
    known = sorted({name for name in datasets if name is not None})
    fields: dict[str, Any] = {
        "license": card.license_name,
        "library_name": "saelens" if formats & {"saelens", "saelens-jumprelu"} else "nestcoder",
        "tags": [*tags, *(["circuit-tracer"] if "circuit-tracer" in formats else [])],
        **({"base_model": card.base_model} if card.base_model else {}),
        **({"datasets": known} if known else {}),
        "model-index": [{"name": card.repository.split("/")[-1], "results": list(results)}],
    }
    return [f"{name}: {json.dumps(value)}" for name, value in fields.items()]


def _result(layer: PublishedLayer) -> dict[str, Any]:
    """One layer's entry of the model index."""
    spliced = layer.metrics["language_model"]
    values: list[dict[str, Any]] = []
    for index, prefix in enumerate(layer.metrics["prefixes"]):
        values += [
            {"type": name.split("_")[0], "name": f"{name.split('_')[0]} of {prefix} features", "value": found}
            for name in _NUMBERS
            if (found := layer.metrics[name][index]) is not None
        ]
        if spliced:
            delta = spliced["per_prefix"][index]["delta"]
            values.append({"type": "delta_ce", "name": f"rise in loss with {prefix} features", "value": delta})
    text = {"type": "text", "name": dataset_words(layer.metrics["cache"])}
    return {"task": {"type": "other", "name": f"layer {layer.layer}"}, "dataset": text, "metrics": values}


def _are_autoencoders(layers: Sequence[PublishedLayer]) -> bool:
    return layers[0].config.get("kind") == "sae"


def _body(card: CardOf, layers: Sequence[PublishedLayer], of_all: Sequence[str]) -> list[str]:
    cache = layers[0].metrics["cache"]
    model = model_words(card, cache)
    if _are_autoencoders(layers):
        described = f"sparse autoencoders of **{model}**, {_layers(layers)}, of `{cache['target_site']}`"
        reads = f"`{cache['source_site']}`"
    else:
        sites = f"from `{cache['source_site']}` to `{cache['target_site']}`"
        described = f"transcoders of **{model}**, {_layers(layers)}, {sites}"
        reads = f"what the MLP reads (`{cache['source_site']}`)"
    lines = [
        f"# {card.repository}",
        "",
        f"Nested-prefix {described}. Every prefix of the features is a smaller dictionary.",
        "",
        "```python",
        "import nestcoder",
        "",
        *_loading(card.repository, [layer.layer for layer in layers]),
        f"features = transcoder.encode(source)  # {reads}, (rows, d_source)",
        "```",
        "",
        *of_all,
    ]
    for layer in layers:
        lines += [f"## Layer {layer.layer}", "", *_training_lines(layer), "", *_table(layer), ""]
    return [*lines, *closing_lines(card, model, _limits(layers))]


def _loading(repository: str, layers: Sequence[int]) -> list[str]:
    if len(layers) == 1:
        return [f'transcoder = nestcoder.load_transcoder("hf:{repository}/layer{layers[0]:02d}")']
    listed = ", ".join(map(str, layers))
    address = f"hf:{repository}/layer{{layer:02d}}"
    return [
        f'transcoders = {{layer: nestcoder.load_transcoder(f"{address}") for layer in ({listed})}}',
        f"transcoder = transcoders[{layers[0]}]",
    ]


def closing_lines(card: CardOf, model: str, limits: Sequence[str]) -> list[str]:
    """Other tools, limits and the licence."""
    lines: list[str] = []
    if card.exported:
        lines += ["## In other tools", ""]
        lines += ["| folder | format | features | exact? | FVU after | L0 after |", "|---|---|---|---|---|---|"]
        lines += [*(export.line() for export in card.exported), ""]
        lines += [
            "FVU and L0 were measured after the conversion, on held-out rows; each folder's EXPORT.json has more.",
            "",
        ]
    lines += ["## Limits", "", *(f"- {limit}" for limit in limits), "", "## Licence", ""]
    licence = f"{card.license_name}. It was trained on activations of {model}, whose own licence may bind too."
    return [*lines, licence]


def _layers(layers: Sequence[PublishedLayer]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(str(layer.layer) for layer in layers)}"


def _range(values: Sequence[float], digits: int) -> str:
    """One number, or the smallest and the largest."""
    ends = [f"{value:.{digits}f}" for value in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else "-".join(ends)


def _training_lines(layer: PublishedLayer) -> list[str]:
    transcoder = layer.metrics["transcoder"]
    config = {**layer.config, "top_k": transcoder["top_k"], "activation": transcoder["activation"]}
    return training_lines(config, features="features", text=dataset_words(layer.metrics["cache"]))


def training_lines(config: Mapping[str, Any], *, features: str, text: str) -> list[str]:
    """How large it is, how it selects, and what it saw."""
    rule = f"top-k, k = {config['top_k']}" if config["top_k"] else f"{config['activation']}"
    tokens = config.get("tokens_trained")
    trained = f"Trained on {tokens:,} rows" if tokens else "Trained"
    lines = [f"{config['dict_size']:,} {features}, {rule}. {trained} of {text}."]
    if tuned := config.get("finetuned"):
        lines.append(f"Then fine-tuned on {tuned['tokens']:,} tokens inside the language model.")
    return lines


def _table(layer: PublishedLayer) -> list[str]:
    """A line a prefix, with intervals over documents."""
    metrics = layer.metrics
    spliced = metrics["language_model"]
    intervals = metrics["fvu_interval_per_prefix"]
    lines = ["| features | FVU | 95 % | L0 | dead | delta CE |", "|---|---|---|---|---|---|"]
    for index, prefix in enumerate(metrics["prefixes"]):
        bounds = "-".join(f"{bound:.4f}" for bound in intervals[index]) if intervals else ""
        dead = metrics["dead_fraction_per_prefix"][index]
        delta = f"{spliced['per_prefix'][index]['delta']:+.4f}" if spliced else "not measured"
        lines.append(
            f"| {prefix:,} | {metrics['fvu_per_prefix'][index]:.4f} | {bounds} | {metrics['l0_per_prefix'][index]:.1f}"
            f" | {'?' if dead is None else f'{dead:.1%}'} | {delta} |"
        )
    held_out = f"On {metrics['tokens_used']:,} held-out tokens of {metrics['documents']:,} documents"
    return [*lines, "", f"{held_out}; intervals resample documents; delta CE in nats a token, spliced into the model."]


def _limits(layers: Sequence[PublishedLayer]) -> list[str]:
    found = limits_of(layers[0].metrics["cache"])
    warnings = {layer.metrics["concentration"]["warning"] for layer in layers} - {None, ""}
    return [*found, *sorted(warnings)]


def limits_of(cache: Mapping[str, Any]) -> list[str]:
    """What whoever uses any dictionary of such rows must know."""
    unproved = ["The activations came from elsewhere, and no harvest proved which tensors they are."]
    return [*LIMITS, *(unproved if cache.get("provenance") else [])]


def hub_dataset(cache: Mapping[str, Any]) -> str | None:
    """The text's name on the Hub, where it comes from there."""
    text = cache.get("dataset")
    if isinstance(text, Mapping) and text.get("kind") == "hub" and "name" in text:
        return str(text["name"])
    return None


def model_words(card: CardOf, cache: Mapping[str, Any]) -> str:
    """The language model, by the name that it has on the Hub where that is known; no path of this machine."""
    model = str(cache["model"])
    is_path = model.startswith(("/", ".", "~"))
    return card.base_model or (model.rstrip("/").split("/")[-1] if is_path else model)


def dataset_words(cache: Mapping[str, Any]) -> str:
    """What the text is called."""
    text = cache.get("dataset") or {}
    return str(text.get("name") or text.get("kind") or "unnamed text") if isinstance(text, Mapping) else str(text)
