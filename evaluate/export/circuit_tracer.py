"""circuit-tracer's packed feature pages: what its viewer of attribution graphs shows of a feature of a local set.

    index.json.gz     {"<layer>": {"filename": "layer_<layer>.bin", "offsets": [0, ..., end]}}
    layer_<n>.bin     of each feature four bytes, the length, little-endian, and the page: gzip of JSON

Feature f's bytes are ``offsets[f]`` to ``offsets[f + 1]``; one that never fires has no page, and so no bytes. The
viewer takes its scale of colours from the first group of examples, which is the strongest.
"""

import json
import struct
from collections.abc import Iterable
from typing import Any

from evaluate.export.files import Files, as_line, packed
from evaluate.features.contexts import STRONGEST, UNIFORM
from evaluate.features.evidence import Evidence
from evaluate.features.text.page import contexts, interval_kinds, intervals, logits, rounded

INDEX_FILE = "index.json.gz"


def circuit_tracer_files(layers: Iterable[Evidence]) -> Files:
    """The packs of some layers, each evidence being read when its turn comes, and the index of all of them."""
    index: dict[str, Any] = {}
    for evidence in layers:
        name = f"layer_{evidence.layer}.bin"
        offsets = [0]
        yield name, _pack(evidence, offsets)
        index[str(evidence.layer)] = {"filename": name, "offsets": offsets}
    yield INDEX_FILE, (packed(json.dumps(index).encode()),)


def _pack(evidence: Evidence, offsets: list[int]) -> Iterable[bytes]:
    """Every feature's bytes, ``offsets`` being filled on the way."""
    for feature in range(evidence.dict_size):
        piece = b""
        if evidence.arrays["firings"][feature]:
            data = packed(as_line(circuit_tracer_page(evidence, feature)))
            piece = struct.pack("<I", len(data)) + data
        offsets.append(offsets[-1] + len(piece))
        yield piece


def circuit_tracer_page(evidence: Evidence, feature: int) -> dict[str, Any]:
    """One page. The percentiles are of the values with which the feature fires, the histogram is in shares of those."""
    arrays = evidence.arrays
    largest = rounded(arrays["largest"][feature])
    effects = logits(evidence, feature) or {"raised": [], "lowered": []}
    counts = arrays["histogram"][feature]
    return {
        "transcoder_id": f"{evidence.model}/{evidence.layer}/{evidence.head['transcoder']['name']}",
        "index": feature,
        "examples_quantiles": _groups(evidence, feature),
        "top_logits": [entry["token"] for entry in effects["raised"]],
        "bottom_logits": [entry["token"] for entry in effects["lowered"]],
        "act_min": 0.0,
        "act_max": largest,
        "quantile_values": [rounded(value) for value in arrays["percentiles"][feature]],
        "histogram": [rounded(share) for share in counts / max(1, counts.sum())],
        "activation_frequency": rounded(arrays["firings"][feature] / evidence.tokens),
    }


def _groups(evidence: Evidence, feature: int) -> list[dict[str, Any]]:
    shares = [f"{entry['share']:.1%}" for entry in intervals(evidence, feature)]
    names = {STRONGEST: "Top activations"}
    count = len(shares)
    for number, kind in interval_kinds(evidence):
        bounds = f"{100 * number / count:.0f} to {100 * (number + 1) / count:.0f} % of the largest"
        names[kind] = f"{bounds} ({shares[number]} of firings)"
    names[UNIFORM] = "Random firings"
    groups = [(name, contexts(evidence, feature, kind)) for kind, name in names.items()]
    return [
        {"quantile_name": name, "examples": [_example(entry) for entry in found]} for name, found in groups if found
    ]


def _example(context: dict[str, Any]) -> dict[str, Any]:
    return {
        "tokens": context["tokens"],
        "tokens_acts_list": context["values"],
        "train_token_ind": context["at"],
        "is_repeated_datapoint": False,
    }
