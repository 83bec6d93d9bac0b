"""Evidence as script files that a page can load from disk: an index of all features, and packs of a few features each.

A page opened from disk may not fetch, but it may run scripts that lie beside it. So each file is one call,

    nestcoder.receive("pack-00012", "...")

whose text is JSON, compressed with gzip and written in base64. Texts of tokens stand once a pack, in its
``vocabulary``, and are named by their place in it.
"""

import base64
import gzip
import json
from collections.abc import Generator
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from evaluate.features.contexts import NO_ROW
from evaluate.features.evidence import Evidence
from evaluate.features.text.clusters import cluster_list
from evaluate.features.text.labels import label_of
from evaluate.features.text.page import context_kinds, neurons, position_rates, relatives, rounded
from evaluate.features.tokens import NO_TOKEN
from evaluate.report.summary import provenance_lines

PACK_FEATURES = 64
"""Features a pack: some hundred kB, which a phone inflates and parses in a few hundredths of a second."""
_SEARCHED_TOKENS = 5
"""Tokens of each feature that the index can be searched by."""
_SHOWN_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_SHOWN_FINER = 40
_LEVEL = 6
_MAP_STEPS = 4095
"""Steps between the borders of the map: more than a screen has."""


def pack_name(number: int) -> str:
    """The name that pack ``number`` is received under, and its file's without the ending."""
    return f"pack-{number:05d}"


def script(name: str, data: Any) -> bytes:
    """One script file."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    # No time and no file name in the header: the same evidence gives the same bytes.
    packed = base64.b64encode(gzip.compress(text, compresslevel=_LEVEL, mtime=0)).decode()
    return f'nestcoder.receive("{name}", "{packed}");\n'.encode()


def packs(evidence: Evidence) -> Generator[tuple[str, bytes]]:
    """Every pack: its name and its file."""
    for number, start in enumerate(range(0, evidence.dict_size, PACK_FEATURES)):
        features = range(start, min(start + PACK_FEATURES, evidence.dict_size))
        yield pack_name(number), script(pack_name(number), pack(evidence, features))


def index(evidence: Evidence) -> dict[str, Any]:
    """One entry a feature in each column: label, firings, largest value, FVU lost, tokens to search by, parent, cluster
    and place on the map (x and y in turn, in 4,096ths). And the clusters: how many features, which tokens.
    """
    arrays = evidence.arrays
    tokens = arrays["on_token"][:, :_SEARCHED_TOKENS]
    used = np.unique(tokens[tokens != NO_TOKEN])
    places = np.where(tokens == NO_TOKEN, -1, np.searchsorted(used, tokens))
    return {
        "head": _head(evidence),
        "labels": [label_of(evidence, feature) for feature in range(evidence.dict_size)],
        "firings": arrays["firings"].tolist(),
        "largest": [rounded(value) for value in arrays["largest"]],
        "lost": [rounded(value) for value in arrays["fvu_lost"]],
        "parent": arrays["coarser_feature"][:, 0].tolist(),
        "vocabulary": [evidence.word(token) for token in used.tolist()],
        "tokens": places.tolist(),
        "cluster": arrays["cluster"].tolist(),
        "clusters": [[one.size, np.searchsorted(used, one.tokens).tolist()] for one in cluster_list(evidence)],
        "map": np.round(arrays["map"] * _MAP_STEPS).astype(np.int64).ravel().tolist(),
    }


def _head(evidence: Evidence) -> dict[str, Any]:
    known = ("transcoder", "cache", "tokens", "rows", "documents", "fvu_per_prefix", "l0", "logits", "self_check")
    head = {name: evidence.head.get(name) for name in known}
    return head | {
        "split": evidence.head["settings"]["split"],
        "pack_features": PACK_FEATURES,
        "kinds": context_kinds(evidence),
        "percentiles": list(_SHOWN_PERCENTILES),
        "cautions": provenance_lines(evidence.head["cache"]),
    }


class _Vocabulary:
    """Token ids to places in a list of texts, in the order in which they are first asked for."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._place = np.full(max(evidence.words, default=0) + 1, -1, dtype=np.int64)
        self._tokens: list[int] = []

    def places(self, tokens: Int[np.ndarray, " tokens"]) -> list[int]:
        places = self._place[tokens]
        if (places < 0).any():
            for token in tokens[places < 0].tolist():
                if self._place[token] < 0:
                    self._place[token] = len(self._tokens)
                    self._tokens.append(token)
            places = self._place[tokens]
        return places.tolist()

    def texts(self) -> list[str]:
        return [self._evidence.word(token) for token in self._tokens]


def pack(evidence: Evidence, features: range) -> dict[str, Any]:
    """A few features' pages."""
    vocabulary = _Vocabulary(evidence)
    pages = [_page(evidence, feature, vocabulary) for feature in features]
    return {"first": features.start, "pages": pages, "vocabulary": vocabulary.texts()}


def _page(evidence: Evidence, feature: int, vocabulary: _Vocabulary) -> dict[str, Any]:
    arrays = evidence.arrays
    related = relatives(evidence, feature)
    page: dict[str, Any] = {
        "mean": rounded(arrays["mean"][feature]),
        "lost_prefix": rounded(arrays["fvu_lost_prefix"][feature]),
        "percentiles": [rounded(arrays["percentiles"][feature, q - 1]) for q in _SHOWN_PERCENTILES],
        "histogram": arrays["histogram"][feature].tolist(),
        "intervals": arrays["intervals"][feature].tolist(),
        "positions": position_rates(evidence, feature),
        "tokens": {side: _tokens(evidence, feature, side, vocabulary) for side in ("before", "on", "after")},
        "relatives": {kind: [list(one.values()) for one in found[:_SHOWN_FINER]] for kind, found in related.items()},
        "finer": len(related["finer"]),
        "contexts": {kind: _contexts(evidence, feature, kind, vocabulary) for kind in context_kinds(evidence)},
    }
    if "raised_token" in arrays:
        page["logits"] = {side: _logits(evidence, feature, side, vocabulary) for side in ("raised", "lowered")}
    if aligned := neurons(evidence, feature):
        page["neurons"] = [list(one.values()) for one in aligned]
    return page


def _tokens(evidence: Evidence, feature: int, side: str, vocabulary: _Vocabulary) -> list[list[Any]]:
    """Place in the vocabulary, count, share, lift, recall."""
    columns = [evidence.arrays[f"{side}_{name}"][feature].tolist() for name in ("count", "share", "lift", "recall")]
    tokens = evidence.arrays[f"{side}_token"][feature]
    tokens = tokens[tokens != NO_TOKEN]
    rows = zip(vocabulary.places(tokens), *columns, strict=False)
    return [[place, count, *map(rounded, rates)] for place, count, *rates in rows]


def _logits(evidence: Evidence, feature: int, side: str, vocabulary: _Vocabulary) -> list[list[Any]]:
    """Place in the vocabulary, logit."""
    places = vocabulary.places(evidence.arrays[f"{side}_token"][feature])
    logits = evidence.arrays[f"{side}_logit"][feature].tolist()
    return [[place, rounded(logit)] for place, logit in zip(places, logits, strict=True)]


def _contexts(evidence: Evidence, feature: int, kind: str, vocabulary: _Vocabulary) -> list[list[Any]]:
    """Document, row, place of the row in the window, tokens, and (place, value, place, value...) where it fires."""
    text = evidence.text
    arrays = evidence.arrays
    rows = arrays[f"context_{kind}"][feature]
    rows = rows[rows != NO_ROW]
    own = slice(*arrays["entry_offsets"][feature : feature + 2])
    firing = arrays["entry_row"][own]
    values = significant(arrays["entry_value"][own])

    firsts, ends = text.windows(rows, evidence.head["settings"]["context_tokens"])
    lows, highs = np.searchsorted(firing, (firsts, ends))
    found: list[list[Any]] = []
    for row, first, end, low, high in np.stack([rows, firsts, ends, lows, highs], axis=1).tolist():
        pairs: list[float] = [0] * (2 * (high - low))
        pairs[::2] = (firing[low:high] - first).tolist()
        pairs[1::2] = values[low:high].tolist()
        places = vocabulary.places(text.tokens[first:end])
        found.append([int(text.document[row]), row, row - first, places, pairs])
    return found


def significant(values: Float[np.ndarray, " values"]) -> Float[np.ndarray, " values"]:
    """Positive values with four significant digits; see ``evaluate.features.text.page.rounded``."""
    exact = values.astype(np.float64)
    # A whole number over a power of ten is the nearest float to that decimal, which JSON then writes in full and short.
    scale = 10.0 ** (3 - np.floor(np.log10(exact)))
    return np.round(exact * scale) / scale
