"""One feature's evidence as plain data, with texts in rank of numbers: for JSON, a terminal, a report."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluate.features.contexts import NO_ROW, SILENT, STRONGEST, UNIFORM, interval_name
from evaluate.features.evidence import Evidence
from evaluate.features.graph.clusters import NO_CLUSTER
from evaluate.features.relations import NO_FEATURE
from evaluate.features.text.labels import label_of
from evaluate.features.tokens import NO_TOKEN

_SHOWN_PERCENTILES = (5, 25, 50, 75, 95)


def feature_page(evidence: Evidence, feature: int) -> dict[str, Any]:
    """Everything that is known of one feature."""
    arrays = evidence.arrays
    firings = int(arrays["firings"][feature])
    return {
        "id": f"{evidence.layer}/{feature}",
        "feature": feature,
        "prefix": prefix_of(evidence, feature),
        "label": label_of(evidence, feature),
        "firings": firings,
        "density": firings / evidence.tokens,
        "largest": rounded(arrays["largest"][feature]),
        "mean": rounded(arrays["mean"][feature]),
        "percentiles": {str(q): rounded(arrays["percentiles"][feature, q - 1]) for q in _SHOWN_PERCENTILES},
        "fvu_lost": rounded(arrays["fvu_lost"][feature]),
        "fvu_lost_prefix": rounded(arrays["fvu_lost_prefix"][feature]),
        "histogram": arrays["histogram"][feature].tolist(),
        "intervals": intervals(evidence, feature),
        "positions": position_rates(evidence, feature),
        "tokens": {offset: tokens(evidence, feature, offset) for offset in ("before", "on", "after")},
        "logits": logits(evidence, feature),
        "neurons": neurons(evidence, feature),
        "writes": writes(evidence, feature),
        "relatives": relatives(evidence, feature),
        "cluster": cluster_of(evidence, feature),
        "formed": formed(evidence, feature),
        "contexts": {kind: contexts(evidence, feature, kind) for kind in context_kinds(evidence)},
    }


def prefix_of(evidence: Evidence, feature: int) -> int:
    """The shortest prefix that has the feature."""
    return next(prefix for prefix in evidence.prefixes if feature < prefix)


def cluster_of(evidence: Evidence, feature: int) -> int | None:
    """The number of the feature's cluster, None where it belongs to none."""
    number = int(evidence.arrays["cluster"][feature])
    return None if number == NO_CLUSTER else number


def context_kinds(evidence: Evidence) -> list[str]:
    """Strongest first, then the intervals from the strongest down, then the others."""
    return [STRONGEST, *(kind for _, kind in interval_kinds(evidence)), UNIFORM, SILENT]


def interval_kinds(evidence: Evidence) -> list[tuple[int, str]]:
    """Number and name of every interval of activation, the strongest first."""
    count = evidence.arrays["intervals"].shape[1]
    return [(number, interval_name(number)) for number in reversed(range(count))]


def intervals(evidence: Evidence, feature: int) -> list[dict[str, Any]]:
    """Bounds, firings and share of firings of each interval of activation, weakest first."""
    counts = evidence.arrays["intervals"][feature]
    largest = float(evidence.arrays["largest"][feature])
    edges = np.linspace(0, largest, len(counts) + 1)
    total = max(1, int(counts.sum()))
    return [
        {"from": rounded(low), "to": rounded(high), "firings": int(count), "share": int(count) / total}
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    ]


def position_rates(evidence: Evidence, feature: int) -> list[float]:
    """The density in each stretch of the context."""
    rates = evidence.arrays["positions"][feature] / np.maximum(1, evidence.arrays["positions_base"])
    return [rounded(rate) for rate in rates]


def tokens(evidence: Evidence, feature: int, offset: str) -> list[dict[str, Any]]:
    """The tokens on one side ("before", "on", "after"), most frequent first."""
    columns = [evidence.arrays[f"{offset}_{name}"][feature] for name in ("token", "count", "share", "lift", "recall")]
    return [
        {
            "token": evidence.word(int(token)),
            "count": int(count),
            "share": rounded(share),
            "lift": rounded(lift),
            "recall": rounded(recall),
        }
        for token, count, share, lift, recall in zip(*columns, strict=True)
        if token != NO_TOKEN
    ]


def logits(evidence: Evidence, feature: int) -> dict[str, Any] | None:
    """Tokens whose logits the feature raises and lowers; None where no unembedding was given."""
    if "raised_token" not in evidence.arrays:
        return None
    return {
        direction: [
            {"token": evidence.word(int(token)), "logit": rounded(logit)}
            for token, logit in zip(
                evidence.arrays[f"{direction}_token"][feature],
                evidence.arrays[f"{direction}_logit"][feature],
                strict=True,
            )
        ]
        for direction in ("raised", "lowered")
    }


def writes(evidence: Evidence, feature: int) -> list[dict[str, Any]] | None:
    """To which layers what share of the decoder's squared norm goes; None where features write to one target."""
    if "written_share" not in evidence.arrays:
        return None
    shares = evidence.arrays["written_share"][feature]
    return [
        {"layer": layer, "share": rounded(share) if share > 0 else 0.0}
        for layer, share in zip(evidence.head["written"], shares, strict=True)
    ]


def neurons(evidence: Evidence, feature: int) -> list[dict[str, Any]] | None:
    """Neurons whose write has the largest cosine, by size, with the decoder row; None where the cache has no MLP."""
    if "neuron_index" not in evidence.arrays:
        return None
    pairs = zip(evidence.arrays["neuron_index"][feature], evidence.arrays["neuron_cosine"][feature], strict=True)
    return [{"neuron": int(neuron), "cosine": rounded(cosine)} for neuron, cosine in pairs]


def formed(evidence: Evidence, feature: int) -> list[dict[str, Any]] | None:
    """The feature at steps of its training: firings, largest value, tokens of its strongest samples; None without."""
    arrays = evidence.arrays
    if "formed_step" not in arrays:
        return None
    names = ("formed_firings", "formed_largest", "formed_token")
    columns = zip(arrays["formed_step"].tolist(), *(arrays[name][feature] for name in names), strict=True)
    return [
        {
            "step": step,
            "firings": int(firings),
            "largest": rounded(largest),
            "tokens": [evidence.word(token) for token in tokens[tokens != NO_TOKEN].tolist()],
        }
        for step, firings, largest, tokens in columns
    ]


def relatives(evidence: Evidence, feature: int) -> dict[str, list[dict[str, Any]]]:
    """Nearest by decoder and encoder, firing on the same rows, coarser and finer features."""
    return {
        "decoder": _nearest(evidence, feature, "decoder"),
        "encoder": _nearest(evidence, feature, "encoder"),
        "near": [_shared(evidence, feature, rank, "near") for rank in _there(evidence, feature, "near")],
        "coarser": [_shared(evidence, feature, rank, "coarser") for rank in _there(evidence, feature, "coarser")],
        "finer": finer(evidence, feature),
    }


def finer(evidence: Evidence, feature: int) -> list[dict[str, Any]]:
    """The features whose parent this one is, those that it predicts best first."""
    found = [
        _shared(evidence, child, 0, "coarser") | {"feature": child} for child in evidence.children.get(feature, [])
    ]
    return sorted(found, key=lambda child: -child["given"])


def _there(evidence: Evidence, feature: int, kind: str) -> list[int]:
    return np.flatnonzero(evidence.arrays[f"{kind}_feature"][feature] != NO_FEATURE).tolist()


def _nearest(evidence: Evidence, feature: int, kind: str) -> list[dict[str, Any]]:
    pairs = zip(evidence.arrays[f"{kind}_feature"][feature], evidence.arrays[f"{kind}_score"][feature], strict=True)
    return [{"feature": int(neighbour), "cosine": rounded(cosine)} for neighbour, cosine in pairs]


def _shared(evidence: Evidence, feature: int, rank: int, kind: str) -> dict[str, Any]:
    """How another feature fires with this one: rows of both, P(other | this), lift, and what ranks it."""
    arrays = evidence.arrays
    neighbour = int(arrays[f"{kind}_feature"][feature, rank])
    rows = int(arrays[f"{kind}_count"][feature, rank])
    own = int(arrays["firings"][feature])
    its = int(arrays["firings"][neighbour])
    shared: dict[str, Any] = {
        "feature": neighbour,
        "rows": rows,
        "given": rounded(rows / own),
        "lift": rounded(rows * evidence.tokens / (own * its)),
    }
    if kind == "near":
        return shared | {"overlap": rounded(arrays["near_score"][feature, rank])}
    cosines = {f"{array}_cosine": arrays[f"coarser_{array}_cosine"][feature, rank] for array in ("decoder", "encoder")}
    return shared | {name: rounded(cosine) for name, cosine in cosines.items()}


def contexts(evidence: Evidence, feature: int, kind: str) -> list[dict[str, Any]]:
    """The contexts of one kind: document, row, tokens, and the feature's value on every one of them."""
    rows = evidence.arrays[f"context_{kind}"][feature]
    return [_context(evidence, feature, int(row)) for row in rows[rows != NO_ROW]]


def _context(evidence: Evidence, feature: int, row: int) -> dict[str, Any]:
    text = evidence.text
    first, end = text.window(row, _window(evidence.head))
    return {
        "document": int(text.document[row]),
        "row": row,
        "at": row - first,
        "tokens": [evidence.word(int(token)) for token in text.tokens[first:end]],
        "values": [rounded(value) for value in evidence.values(feature, first, end)],
    }


def _window(head: Mapping[str, Any]) -> int:
    return int(head["settings"]["context_tokens"])


def rounded(value: float | np.floating[Any]) -> float:
    """Four significant digits: fewer would show other orders, more would be noise."""
    return float(f"{float(value):.4g}")
