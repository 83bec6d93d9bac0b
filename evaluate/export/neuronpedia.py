"""Neuronpedia's import folder: what its bulk import reads, field for field, without a dashboard made in between.

    <model>/<layer>-<set>/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl     a line each
    <model>/<layer>-<set>/features/batch-<n>.jsonl.gz                                   a line a feature
    <model>/<layer>-<set>/activations/batch-<n>.jsonl.gz                                a line a context

What the evidence does not have is left empty, as the importer allows: decoder vectors, the distribution of logits over
the vocabulary, correlated and aligned neurons. Contexts are windows, not whole prompts.
"""

from collections.abc import Iterable
from typing import Any

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
    "logits_hist_data_bar_heights", "logits_hist_data_bar_values", "decoder_weights_dist", "vector",
)  # fmt: skip


def neuronpedia_files(layers: Iterable[Evidence], *, created_at: str) -> Files:
    """One folder a layer. ``created_at`` is what every record gives as its date."""
    for evidence in layers:
        source = source_id(evidence)
        folder = f"{evidence.model}/{source}"
        for name, record in _records(evidence, source, created_at).items():
            yield f"{folder}/{name}.jsonl", (as_line(record),)
        for number, start in enumerate(range(0, evidence.dict_size, BATCH_FEATURES)):
            batch = range(start, min(start + BATCH_FEATURES, evidence.dict_size))
            features = b"".join(as_line(feature_record(evidence, one, created_at)) for one in batch)
            yield f"{folder}/features/batch-{number}.jsonl.gz", (packed(features),)
            activations = b"".join(
                as_line(one) for feature in batch for one in activation_records(evidence, feature, created_at)
            )
            yield f"{folder}/activations/batch-{number}.jsonl.gz", (packed(activations),)


def source_id(evidence: Evidence) -> str:
    """What Neuronpedia calls a layer of a set: its number and the set's name."""
    return f"{evidence.layer}-{_set_name(evidence)}"


def _set_name(evidence: Evidence) -> str:
    return f"nestcoder-{evidence.head['transcoder']['name']}".replace("/", "-")


def _records(evidence: Evidence, source: str, created_at: str) -> dict[str, dict[str, Any]]:
    model = evidence.model
    name = _set_name(evidence)
    common = {"creatorId": CREATOR, "visibility": "PUBLIC", "createdAt": created_at}
    title = f"nestcoder transcoders of {model}"
    return {
        "release": {"name": f"{model}-{name}", "description": title, "descriptionShort": title, "urls": []}
        | {"creatorName": "nestcoder", "creatorNameShort": "nestcoder", "isNewUi": False, "featured": False}
        | common,
        "model": {"id": model, "instruct": model.endswith("-it"), "displayName": model, "displayNameShort": model}
        | {"layers": 0, "neuronsPerLayer": 0, "owner": "", "inferenceEnabled": False, "updatedAt": created_at}
        | common,
        "sourceset": {"modelId": model, "name": name, "description": title, "releaseName": f"{model}-{name}"}
        | {"type": "", "creatorName": "nestcoder", "urls": [], "hasDashboards": True, "defaultShowBreaks": True}
        | common,
        "source": {"id": source, "modelId": model, "setName": name, "hasDashboards": True, "inferenceEnabled": False}
        | {"dataset": evidence.dataset, "num_prompts": evidence.head["documents"]}
        | {"num_tokens_in_prompt": 2 * int(evidence.head["settings"]["context_tokens"]) + 1}
        | common,
    }


def feature_record(evidence: Evidence, feature: int, created_at: str) -> dict[str, Any]:
    """One line of ``features/``."""
    arrays = evidence.arrays
    effects = logits(evidence, feature) or {"raised": [], "lowered": []}
    counts = arrays["histogram"][feature]
    step = float(arrays["largest"][feature]) / len(counts)
    return {
        "modelId": evidence.model,
        "layer": source_id(evidence),
        "index": str(feature),
        "sourceSetName": _set_name(evidence),
        "creatorId": CREATOR,
        "createdAt": created_at,
        "maxActApprox": rounded(arrays["largest"][feature]),
        "hasVector": False,
        "vectorLabel": None,
        "vectorDefaultSteerStrength": None,
        "hookName": None,
        "topkCosSimIndices": arrays["decoder_feature"][feature].tolist(),
        "topkCosSimValues": [rounded(value) for value in arrays["decoder_score"][feature]],
        "pos_str": [one["token"] for one in effects["raised"]],
        "pos_values": [one["logit"] for one in effects["raised"]],
        "neg_str": [one["token"] for one in effects["lowered"]],
        "neg_values": [one["logit"] for one in effects["lowered"]],
        "frac_nonzero": rounded(arrays["firings"][feature] / evidence.tokens),
        "freq_hist_data_bar_heights": counts.tolist(),
        "freq_hist_data_bar_values": [rounded(step * (place + 0.5)) for place in range(len(counts))],
        **{name: [] for name in _EMPTY},
    }


def activation_records(evidence: Evidence, feature: int, created_at: str) -> list[dict[str, Any]]:
    """The lines of ``activations/`` of one feature: the strongest contexts, then those of the intervals."""
    strongest = {"binMin": _NO_BIN, "binMax": _NO_BIN, "binContains": _NO_BIN}
    bounds = intervals(evidence, feature)
    kinds: dict[str, dict[str, Any]] = {STRONGEST: strongest}
    for number, kind in interval_kinds(evidence):
        one = bounds[number]
        kinds[kind] = {"binMin": one["from"], "binMax": one["to"], "binContains": rounded(one["share"])}
    common = {
        "modelId": evidence.model,
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
        "tokens": context["tokens"],
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
