"""The model card of published dictionaries: all that it says is read from their config.json and metrics.json.

Its front matter is what the Hub reads: licence, base model, datasets, tags, and a model index with the numbers.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TAGS = ("transcoder", "matryoshka", "sparse-autoencoder", "mechanistic-interpretability")
_NUMBERS = ("fvu_per_prefix", "l0_per_prefix")
_LIMITS = (
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


def model_card(
    repository: str,
    layers: Sequence[PublishedLayer],
    *,
    license_name: str,
    base_model: str | None = None,
    exported: Sequence[PublishedExport] = (),
) -> str:
    """README.md of a repository. ``exported`` are the folders for other tools that lie beside the layers."""
    front = _front_matter(repository, layers, license_name=license_name, base_model=base_model, exported=exported)
    return "\n".join(["---", *front, "---", "", *_body(repository, layers, license_name, exported)]) + "\n"


def _front_matter(
    repository: str,
    layers: Sequence[PublishedLayer],
    *,
    license_name: str,
    base_model: str | None,
    exported: Sequence[PublishedExport],
) -> list[str]:
    """YAML, every value as JSON, which is YAML too."""
    formats = {export.format for export in exported}
    library = "saelens" if formats & {"saelens", "saelens-jumprelu"} else "nestcoder"
    tags = [*_TAGS, *(["circuit-tracer"] if "circuit-tracer" in formats else [])]
    datasets = sorted({name for layer in layers if (name := _hub_dataset(layer)) is not None})
    fields: dict[str, Any] = {
        "license": license_name,
        "library_name": library,
        "tags": tags,
        **({"base_model": base_model} if base_model else {}),
        **({"datasets": datasets} if datasets else {}),
        "model-index": [{"name": repository.split("/")[-1], "results": [_result(layer) for layer in layers]}],
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
    text = {"type": "text", "name": _dataset_words(layer)}
    return {"task": {"type": "other", "name": f"layer {layer.layer}"}, "dataset": text, "metrics": values}


def _body(
    repository: str, layers: Sequence[PublishedLayer], license_name: str, exported: Sequence[PublishedExport]
) -> list[str]:
    first = layers[0]
    cache = first.metrics["cache"]
    kind = "sparse autoencoders" if first.config.get("kind") == "sae" else "transcoders"
    lines = [
        f"# {repository}",
        "",
        f"Nested-prefix {kind} of **{cache['model']}**, {_layers(layers)}, from "
        f"`{cache['source_site']}` to `{cache['target_site']}`. Every prefix of the features is a smaller dictionary.",
        "",
        "```python",
        "import nestcoder",
        "",
        f'transcoder = nestcoder.load_transcoder("hf:{repository}/layer{first.layer:02d}")',
        "features = transcoder.encode(source)  # what the MLP reads, (rows, d_source)",
        "```",
        "",
    ]
    for layer in layers:
        lines += [f"## Layer {layer.layer}", "", *_training_lines(layer), "", *_table(layer), ""]
    if exported:
        lines += ["## In other tools", ""]
        lines += ["| folder | format | features | exact? | FVU after | L0 after |", "|---|---|---|---|---|---|"]
        lines += [*(export.line() for export in exported), ""]
        lines += [
            "FVU and L0 were measured after the conversion, on held-out rows; each folder's EXPORT.json has more.",
            "",
        ]
    lines += ["## Limits", "", *(f"- {limit}" for limit in _limits(layers)), "", "## Licence", ""]
    lines.append(f"{license_name}. It was trained on activations of {cache['model']}, whose own licence may bind too.")
    return lines


def _layers(layers: Sequence[PublishedLayer]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(str(layer.layer) for layer in layers)}"


def _range(values: Sequence[float], digits: int) -> str:
    """One number, or the smallest and the largest."""
    ends = [f"{value:.{digits}f}" for value in (min(values), max(values))]
    return ends[0] if ends[0] == ends[1] else "-".join(ends)


def _training_lines(layer: PublishedLayer) -> list[str]:
    config = layer.config
    transcoder = layer.metrics["transcoder"]
    rule = f"top-k, k = {transcoder['top_k']}" if transcoder["top_k"] else f"{transcoder['activation']}"
    tokens = config.get("tokens_trained")
    trained = f"Trained on {tokens:,} rows" if tokens else "Trained"
    lines = [f"{config['dict_size']:,} features, {rule}. {trained} of {_dataset_words(layer)}."]
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
    found: list[str] = list(_LIMITS)
    if any(layer.metrics["cache"].get("provenance") for layer in layers):
        found.append("The activations came from elsewhere, and no harvest proved which tensors they are.")
    warnings = {layer.metrics["concentration"]["warning"] for layer in layers} - {None, ""}
    return [*found, *sorted(warnings)]


def _hub_dataset(layer: PublishedLayer) -> str | None:
    """The text's name on the Hub, where it comes from there."""
    text = layer.metrics["cache"].get("dataset")
    is_hub = isinstance(text, Mapping) and text.get("kind") == "hub"
    return str(text["name"]) if is_hub and "name" in text else None


def _dataset_words(layer: PublishedLayer) -> str:
    text = layer.metrics["cache"].get("dataset") or {}
    return str(text.get("name") or text.get("kind") or "unnamed text") if isinstance(text, Mapping) else str(text)
