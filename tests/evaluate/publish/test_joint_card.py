"""The card of several layers says what their report says."""

from typing import Any

import pytest
from ruamel.yaml import YAML

from evaluate.publish.card import CardOf
from evaluate.publish.joint_card import PublishedLayers, joint_card, set_lines

SPLICED = {"per_prefix": [{"kl": 0.4, "top1": 0.5, "delta": 0.3}, {"kl": 0.2, "top1": 0.75, "delta": -0.1}]}
FIELDS: dict[str, Any] = {
    "window": 2,
    "prefixes": [96, 1536],
    "fvu_per_prefix": [0.4, 0.25],
    "fvu_interval_per_prefix": [[0.39, 0.41], [0.24, 0.26]],
    "fvu_per_layer_and_prefix": [[0.5, 0.3], [0.3, 0.2]],
    "l0_per_layer_and_prefix": [[2.0, 4.0], [3.0, 5.0]],
    "dead_per_layer": [0.125, 0.0],
    "crossing_per_layer": [0.5, 0.0],
    "tokens_used": 12_345,
    "language_model": SPLICED,
}
METRICS: dict[str, Any] = {
    "layers": [4, 6],
    "documents": 40,
    "cache": {
        "model": "openai/gpt2", "source_site": "mlp_in", "target_site": "mlp_out", "provenance": "unproved",
        "dataset": {"kind": "hub", "name": "somebody/text"},
    },
}  # fmt: skip
CONFIG = {"dict_size": 1536, "top_k": 16, "activation": "topk", "tokens_trained": 5000, "finetuned": {"tokens": 2048}}


def published(**changed: Any) -> PublishedLayers:
    return PublishedLayers("layers04_06", CONFIG, METRICS, FIELDS | changed)


def test_numbers_reach_and_front_matter() -> None:
    _, front, body = joint_card(CardOf("a/b", "mit", "openai/gpt2"), published()).split("---\n", 2)
    fields = YAML(typ="safe", pure=True).load(front)
    assert fields["tags"][:2] == ["cross-layer-transcoder", "transcoder"]
    assert fields["datasets"] == ["somebody/text"]
    (result,) = fields["model-index"][0]["results"]
    assert result["task"]["name"] == "layers 4 and 6"
    values = {entry["name"]: entry["value"] for entry in result["metrics"]}
    assert values["mean fvu of 96 features a layer"] == 0.4
    assert values["kl of 1536 features a layer"] == 0.2
    assert values["rise in loss with 1536 features a layer"] == -0.1
    assert 'load_cross_layer("hf:a/b/layers04_06")' in body
    assert "1,536 features a layer, top-k, k = 16. Trained on 5,000 rows of somebody/text." in body
    assert "Then fine-tuned on 2,048 tokens" in body
    assert "| 96 | 0.4000 | 0.3900-0.4100 | 2.5 | 0.4000 | 50.0% | +0.3000 |" in body
    assert "| 4 | 0.5000 | 0.3000 | 4.0 | 12.5% | 50.0% |" in body
    assert "On 12,345 held-out tokens of 40 documents" in body
    assert "no harvest proved which tensors they are" in body
    assert "absorption" not in body


@pytest.mark.parametrize(
    ("layers", "window", "words"),
    [
        ([4, 6], 0, "that layer alone"),
        ([4, 6], 1, "that layer and the next."),
        ([4, 5, 6], 1, "that layer and the next."),
        ([4, 5, 6, 7], 2, "that layer and the next 2."),
        ([4, 5, 6], 2, "that layer and all later ones."),
    ],
)
def test_the_window_is_said_in_words(layers: list[int], window: int, words: str) -> None:
    columns = ("fvu_per_layer_and_prefix", "l0_per_layer_and_prefix", "dead_per_layer", "crossing_per_layer")
    fields = {name: [FIELDS[name][0]] * len(layers) for name in columns}
    found = PublishedLayers("x", CONFIG, METRICS | {"layers": layers}, FIELDS | fields | {"window": window})
    assert f"writes to `mlp_out` of {words}" in joint_card(CardOf("a/b", "mit"), found) + "."


def test_what_was_not_measured_has_no_column() -> None:
    lines = set_lines(published(language_model=None, fvu_interval_per_prefix=None))
    assert lines[0] == "## Layers 4 and 6 at once"
    assert "| 96 | 0.4000 |  | 2.5 |" in lines
    assert "what the model loses was not measured" in lines[-2]


def test_absorption_is_there_where_it_was_scored() -> None:
    scores = [{"layer": 4, "score": 0.25}, {"layer": 6, "score": None}]
    card = joint_card(CardOf("a/b", "mit"), published(absorption_first_letter_per_layer=scores))
    assert "| 4 | 0.5000 | 0.3000 | 4.0 | 12.5% | 50.0% | 0.250 |" in card
    assert "| 6 | 0.3000 | 0.2000 | 5.0 | 0.0% | 0.0% | ? |" in card
