"""Neuronpedia's import folder: what its bulk import reads, field for field, without a dashboard made in between.

    <model>/<layer>-<set>/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl     a line each
    <model>/<layer>-<set>/features/batch-<n>.jsonl.gz                                   a line a feature
    <model>/<layer>-<set>/activations/batch-<n>.jsonl.gz                                a line a context

Decoder vectors are of the transcoder, which the evidence does not keep. What neither has is left empty, as the importer
allows: correlated neurons and features, logits where there was no unembedding. Contexts are windows, not whole prompts.
"""

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from common.hashing import hash_bytes
from evaluate.export.files import Files, as_line, packed
from evaluate.features.contexts import STRONGEST
from evaluate.features.evidence import Evidence
from evaluate.features.text.page import contexts, interval_kinds, intervals, logits, rounded

BATCH_FEATURES = 256
CREATOR = "clkht01d40000jv08hvalcvly"
"""The account that Neuronpedia's own converter names where none is given."""
_NO_BIN = -1
"""What stands for the bounds of the strongest contexts, which are in no interval."""
_EMPTY = (
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1",
    "correlated_neurons_indices", "correlated_neurons_pearson", "correlated_neurons_l1",
    "correlated_features_indices", "correlated_features_pearson", "correlated_features_l1",
    "decoder_weights_dist",
)  # fmt: skip
_NAME = re.compile(r"[^a-zA-Z0-9_-]")
"""What its names of models and sets may not have in them."""

Decoder = Float[np.ndarray, "features d_target"]


def neuronpedia_files(layers: Iterable[tuple[Evidence, Decoder | None]], *, created_at: str) -> Files:
    """One folder a layer, from its evidence and decoder rows. ``created_at`` is what every record gives as its date."""
    for evidence, decoder in layers:
        source = source_id(evidence)
        folder = f"{model_id(evidence)}/{source}"
        for name, record in _records(evidence, source, created_at).items():
            yield f"{folder}/{name}.jsonl", (as_line(record),)
        for number, start in enumerate(range(0, evidence.dict_size, BATCH_FEATURES)):
            batch = range(start, min(start + BATCH_FEATURES, evidence.dict_size))
            features = b"".join(as_line(feature_record(evidence, decoder, feature, created_at)) for feature in batch)
            yield f"{folder}/features/batch-{number}.jsonl.gz", (packed(features),)
            activations = b"".join(
                as_line(record) for feature in batch for record in activation_records(evidence, feature, created_at)
            )
            yield f"{folder}/activations/batch-{number}.jsonl.gz", (packed(activations),)


def model_id(evidence: Evidence) -> str:
    """The model's name in the characters that Neuronpedia allows."""
    return _NAME.sub("-", evidence.model)


def source_id(evidence: Evidence) -> str:
    """What Neuronpedia calls a layer of a set: its number and the set's name."""
    return f"{evidence.layer}-{_set_name(evidence)}"


def _set_name(evidence: Evidence) -> str:
    return _NAME.sub("-", f"nestcoder-{evidence.head['transcoder']['name']}")


def _records(evidence: Evidence, source: str, created_at: str) -> dict[str, dict[str, Any]]:
    model = model_id(evidence)
    name = _set_name(evidence)
    common = {"creatorId": CREATOR, "visibility": "PUBLIC", "createdAt": created_at}
    title = f"nestcoder transcoders of {model}"
    return {
        "release": {"name": f"{model}-{name}", "description": title, "descriptionShort": title, "urls": []}
        | {"creatorName": "nestcoder", "creatorNameShort": "nestcoder", "isNewUi": False, "featured": False}
        | common,
        "model": {"id": model, "instruct": model.endswith("-it"), "displayName": model, "displayNameShort": model}
        | {"layers": 0, "neuronsPerLayer": 0, "owner": model, "inferenceEnabled": False, "updatedAt": created_at}
        | common,
        "sourceset": {"modelId": model, "name": name, "description": title, "releaseName": f"{model}-{name}"}
        | {"type": "", "creatorName": "nestcoder", "urls": [], "hasDashboards": True, "defaultShowBreaks": True}
        | common,
        "source": {"id": source, "modelId": model, "setName": name, "hasDashboards": True, "inferenceEnabled": False}
        | {"dataset": evidence.dataset, "num_prompts": evidence.head["documents"]}
        | {"num_tokens_in_prompt": 2 * int(evidence.head["settings"]["context_tokens"]) + 1}
        | common,
    }


def feature_record(evidence: Evidence, decoder: Decoder | None, feature: int, created_at: str) -> dict[str, Any]:
    """One line of ``features/``."""
    arrays = evidence.arrays
    largest = rounded(arrays["largest"][feature])
    vector = [] if decoder is None else [rounded(value) for value in decoder[feature]]
    effects = logits(evidence, feature) or {"raised": [], "lowered": []}
    return {
        "modelId": model_id(evidence),
        "layer": source_id(evidence),
        "index": str(feature),
        "sourceSetName": _set_name(evidence),
        "creatorId": CREATOR,
        "createdAt": created_at,
        "maxActApprox": largest,
        "hasVector": bool(vector),
        "vector": vector,
        "vectorLabel": None,
        # Its own converter steers with the largest activation, and names hooks as TransformerLens does.
        "vectorDefaultSteerStrength": largest if vector else None,
        "hookName": f"blocks.{evidence.layer}.hook_mlp_out" if vector else None,
        "topkCosSimIndices": arrays["decoder_feature"][feature].tolist(),
        "topkCosSimValues": [rounded(value) for value in arrays["decoder_score"][feature]],
        "pos_str": [_storable(token["token"]) for token in effects["raised"]],
        "pos_values": [token["logit"] for token in effects["raised"]],
        "neg_str": [_storable(token["token"]) for token in effects["lowered"]],
        "neg_values": [token["logit"] for token in effects["lowered"]],
        "frac_nonzero": rounded(arrays["firings"][feature] / evidence.tokens),
        **_bars("freq", arrays["histogram"][feature], 0.0, float(arrays["largest"][feature])),
        **_logit_bars(evidence, feature),
        **{name: [] for name in _EMPTY},
    }


def _storable(token: str) -> str:
    """A token's text as PostgreSQL takes it, which has no character 0: written as other bytes without a text are."""
    return token.replace("\0", "\\x00")


def _logit_bars(evidence: Evidence, feature: int) -> dict[str, list[int] | list[float]]:
    """The histogram of logits over the vocabulary; empty where there was no unembedding."""
    arrays = evidence.arrays
    if "logit_histogram" not in arrays:
        return {f"logits_hist_data_bar_{name}": [] for name in ("heights", "values")}
    bounds = (float(arrays[f"{direction}_logit"][feature, 0]) for direction in ("lowered", "raised"))
    return _bars("logits", arrays["logit_histogram"][feature], *bounds)


def _bars(kind: str, counts: Int[np.ndarray, " bins"], low: float, high: float) -> dict[str, list[int] | list[float]]:
    """Counts in equal bins between two numbers, and the middle of each bin."""
    middles = low + (high - low) * (np.arange(len(counts)) + 0.5) / len(counts)
    return {
        f"{kind}_hist_data_bar_heights": counts.tolist(),
        f"{kind}_hist_data_bar_values": [rounded(middle) for middle in middles],
    }


def activation_records(evidence: Evidence, feature: int, created_at: str) -> list[dict[str, Any]]:
    """The lines of ``activations/`` of one feature: the strongest contexts, then those of the intervals."""
    strongest = {"binMin": _NO_BIN, "binMax": _NO_BIN, "binContains": _NO_BIN}
    bounds = intervals(evidence, feature)
    kinds: dict[str, dict[str, Any]] = {STRONGEST: strongest}
    for number, kind in interval_kinds(evidence):
        interval = bounds[number]
        limits = {"binMin": interval["from"], "binMax": interval["to"], "binContains": rounded(interval["share"])}
        kinds[kind] = limits
    common = {
        "modelId": model_id(evidence),
        "layer": source_id(evidence),
        "index": str(feature),
        "creatorId": CREATOR,
        "createdAt": created_at,
        "dataSource": evidence.dataset,
    }
    return [
        common | _activation(evidence, feature, kind, context) | limits
        for kind, limits in kinds.items()
        for context in contexts(evidence, feature, kind)
    ]


def _activation(evidence: Evidence, feature: int, kind: str, context: dict[str, Any]) -> dict[str, Any]:
    values = context["values"]
    largest = max(values)
    named = f"{evidence.head['cache']['fingerprint']} {source_id(evidence)} {feature} {kind} {context['row']}"
    return {
        # Unique among all rows of their database, and the same whenever the export is made again.
        "id": f"c{hash_bytes(named.encode())[:24]}",
        "tokens": [_storable(token) for token in context["tokens"]],
        "values": values,
        "maxValue": largest,
        "maxValueTokenIndex": values.index(largest),
        "minValue": min(values),
        "qualifyingTokenIndex": context["at"],
        "dataIndex": str(context["document"]),
        "dfaValues": [],
        "dfaMaxValue": None,
        "dfaTargetIndex": None,
        "lossValues": [],
        "logitContributions": None,
    }
