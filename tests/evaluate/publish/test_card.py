"""The card says what metrics.json says, in words for people and in front matter that is YAML."""

from typing import Any

from ruamel.yaml import YAML

from evaluate.publish.card import CardOf, PublishedExport, PublishedLayer, model_card

METRICS: dict[str, Any] = {
    "prefixes": [8, 32],
    "fvu_per_prefix": [0.41234, 0.2],
    "fvu_interval_per_prefix": None,
    "l0_per_prefix": [2.0, 4.0],
    "dead_fraction_per_prefix": [0.0, None],
    "tokens_used": 12_345,
    "documents": 40,
    "concentration": {"warning": "A handful of rows rules the variance."},
    "language_model": None,
    "transcoder": {"top_k": 4, "activation": "topk"},
    "cache": {"model": "gpt2", "source_site": "mlp_in", "target_site": "mlp_out", "dataset": {"kind": "stdlib"}},
}

RECORD: dict[str, Any] = {
    "exactness": "approximate",
    "prefix": {"size": 8},
    "held_out": {"after": {"fvu": 0.45, "l0": 3.0}},
}
EXPORT = PublishedExport(
    "circuit_tracer-p8",
    "circuit-tracer",
    {4: RECORD, 8: RECORD | {"held_out": {"after": {"fvu": 0.41, "l0": 3.01}}}},
)


def test_numbers_limits_and_front_matter() -> None:
    config = {"dict_size": 32, "tokens_trained": 5000, "finetuned": {"tokens": 2048}}
    card = model_card(CardOf("a/b", "mit", exported=[EXPORT]), [PublishedLayer(8, config, METRICS)])
    _, front, body = card.split("---\n", 2)
    fields = YAML(typ="safe", pure=True).load(front)
    assert (fields["license"], fields["library_name"]) == ("mit", "nestcoder")
    assert "circuit-tracer" in fields["tags"]
    assert "datasets" not in fields, "the standard library is no data set of the Hub"
    values = {entry["name"]: entry["value"] for entry in fields["model-index"][0]["results"][0]["metrics"]}
    assert values == {
        "fvu of 8 features": 0.41234,
        "l0 of 8 features": 2.0,
        "fvu of 32 features": 0.2,
        "l0 of 32 features": 4.0,
    }
    assert 'load_transcoder("hf:a/b/layer08")' in body
    assert "| 8 | 0.4123 |  | 2.0 | 0.0% | not measured |" in body
    assert "| 32 | 0.2000 |  | 4.0 | ? | not measured |" in body
    assert "Then fine-tuned on 2,048 tokens" in body
    assert "layer 8, from `mlp_in`" in body
    assert "| `circuit_tracer-p8/` | circuit-tracer | 8 | approximate | 0.4100-0.4500 | 3.0 |" in body
    assert "- A handful of rows rules the variance." in body


def test_activations_from_elsewhere_are_named() -> None:
    metrics = METRICS | {
        "cache": METRICS["cache"] | {"provenance": "unproved", "dataset": {"kind": "hub", "name": "x/y"}}
    }
    saelens = PublishedExport("saelens/blocks.8.mlp_out", "saelens", {8: RECORD | {"prefix": None}})
    card = model_card(CardOf("a/b", "mit", exported=[saelens]), [PublishedLayer(8, {"dict_size": 32}, metrics)])
    assert "no harvest proved which tensors they are" in card
    assert 'datasets: ["x/y"]' in card
    assert 'library_name: "saelens"' in card


def test_an_autoencoder_is_of_one_site_and_is_called_no_transcoder() -> None:
    config = {"dict_size": 32, "kind": "sae"}
    cache = METRICS["cache"] | {"model": "/home/somebody/gpt2", "source_site": "mlp_out"}
    layers = [PublishedLayer(layer, config, METRICS | {"cache": cache}) for layer in (4, 8)]
    card = model_card(CardOf("a/b", "mit"), layers, of_all=["## Both at once", ""])
    assert "sparse autoencoders of **gpt2**, layers 4, 8, of `mlp_out`. " in card
    assert "/home" not in card
    assert "encode(source)  # `mlp_out`, (rows, d_source)" in card
    assert 'load_transcoder(f"hf:a/b/layer{layer:02d}") for layer in (4, 8)}' in card
    tags = next(line for line in card.splitlines() if line.startswith("tags:"))
    assert '"transcoder"' not in tags
    assert "sparse-autoencoder" in tags
    assert card.index("## Both at once") < card.index("## Layer 4")
