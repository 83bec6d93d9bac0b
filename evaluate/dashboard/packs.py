"""Evidence as script files that a page can load from disk: an index of all features, and packs of a few features each.

A page opened from disk may not fetch, but it may run scripts that lie beside it. So each file is one call,

    nestcoder.receive("pack-00012", "...")

whose text is JSON, compressed with gzip and written in base64. Texts of tokens stand once a pack, in its
``vocabulary``, and are named by their number in it.
"""

import base64
import gzip
import json
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from evaluate.features.contexts import NO_ROW
from evaluate.features.evidence import Evidence
from evaluate.features.text.clusters import cluster_list
from evaluate.features.text.labels import label_of
from evaluate.features.text.page import context_kinds, neurons, position_rates, relatives, rounded, writes
from evaluate.features.tokens import NO_TOKEN
from evaluate.report.summary import provenance_lines

PACK_FEATURES = 64
"""Features a pack: some hundred kB, which a phone inflates and parses in a few hundredths of a second."""
_SEARCHED_TOKENS = 5
"""Tokens of each feature that the index can be searched by."""
_SHOWN_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_SHOWN_FINER = 40
_LEVEL = 6
_COMPRESSING_THREADS = 2
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
    waiting: deque[tuple[str, Future[bytes]]] = deque()
    # Compressing lets go of the interpreter: other threads do it while the next pack is made.
    with ThreadPoolExecutor(_COMPRESSING_THREADS) as pool:
        for number, start in enumerate(range(0, evidence.dict_size, PACK_FEATURES)):
            name = pack_name(number)
            made = pack(evidence, range(start, min(start + PACK_FEATURES, evidence.dict_size)))
            waiting.append((name, pool.submit(script, name, made)))
            if len(waiting) > _COMPRESSING_THREADS:
                ready, data = waiting.popleft()
                yield ready, data.result()
        for name, data in waiting:
            yield name, data.result()


def index(evidence: Evidence) -> dict[str, Any]:
    """One entry a feature in each column: label, firings, largest value, FVU lost, tokens to search by, parent, cluster
    and place on the map (x and y in turn, in 4,096ths). And the clusters: how many features, which tokens.
    """
    arrays = evidence.arrays
    tokens = arrays["on_token"][:, :_SEARCHED_TOKENS]
    used = np.unique(tokens[tokens != NO_TOKEN])
    numbers = np.where(tokens == NO_TOKEN, -1, np.searchsorted(used, tokens))
    return {
        "head": _head(evidence),
        "labels": [label_of(evidence, feature) for feature in range(evidence.dict_size)],
        "firings": arrays["firings"].tolist(),
        "largest": [rounded(value) for value in arrays["largest"]],
        "lost": [rounded(value) for value in arrays["fvu_lost"]],
        "parent": arrays["coarser_feature"][:, 0].tolist(),
        "vocabulary": [evidence.word(token) for token in used.tolist()],
        "tokens": numbers.tolist(),
        "cluster": arrays["cluster"].tolist(),
        "clusters": [[entry.size, np.searchsorted(used, entry.tokens).tolist()] for entry in cluster_list(evidence)],
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
        "formed": _formed_head(evidence),
        "all_layers": evidence.head.get("all_layers"),
        "cautions": [*provenance_lines(evidence.head["cache"]), *evidence.head.get("cautions", [])],
    }


def _formed_head(evidence: Evidence) -> dict[str, Any] | None:
    formed = evidence.head.get("formed")
    return formed and formed | {"steps": evidence.arrays["formed_step"].tolist()}


class _Vocabulary:
    """The token ids of a pack to numbers in its list of texts: the shortest numbers for the most frequent tokens."""

    def __init__(self, evidence: Evidence, needed: list[Int[np.ndarray, "..."]]) -> None:
        tokens, counts = np.unique(np.concatenate(needed), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        self._tokens = tokens
        self._number = np.argsort(order, kind="stable")
        self.texts = [evidence.word(token) for token in tokens[order].tolist()]

    def numbers(self, tokens: Int[np.ndarray, " tokens"]) -> list[int]:
        """Where each token's text stands in ``texts``."""
        return self._number[np.searchsorted(self._tokens, tokens)].tolist()


@dataclass(frozen=True)
class _Windows:
    """The windows of all contexts of a pack, in one table: rows of the text, and the tokens of window after window.

    Of a context that is not there, ``row`` is -1 and the window is empty.
    """

    kinds: dict[str, slice]
    row: Int[np.ndarray, "features contexts"]
    first: Int[np.ndarray, "features contexts"]
    end: Int[np.ndarray, "features contexts"]
    tokens: Int[np.ndarray, " tokens"]

    @staticmethod
    def of_features(evidence: Evidence, features: range) -> "_Windows":
        """Those of some features."""
        tables = {
            kind: evidence.arrays[f"context_{kind}"][features.start : features.stop] for kind in context_kinds(evidence)
        }
        ends = np.cumsum([table.shape[1] for table in tables.values()]).tolist()
        kinds = {
            kind: slice(end - table.shape[1], end) for end, (kind, table) in zip(ends, tables.items(), strict=True)
        }
        row = np.concatenate(list(tables.values()), axis=1)
        there = row != NO_ROW
        first, end = np.zeros_like(row), np.zeros_like(row)
        first[there], end[there] = evidence.text.windows(row[there], evidence.head["settings"]["context_tokens"])
        length = (end - first).ravel()
        start = np.cumsum(length) - length
        # Every token's number within the text: its window's first row, and how far it is into the window.
        inside = np.arange(int(length.sum())) - np.repeat(start - first.ravel(), length)
        return _Windows(kinds, row, first, end, evidence.text.tokens[inside])


def pack(evidence: Evidence, features: range) -> dict[str, Any]:
    """A few features' pages."""
    arrays = evidence.arrays
    windows = _Windows.of_features(evidence, features)
    tables_of_tokens = ("before", "on", "after", "raised", "lowered", "formed")
    named = [f"{table}_token" for table in tables_of_tokens if f"{table}_token" in arrays]
    tables = [arrays[name][features.start : features.stop].ravel() for name in named]
    vocabulary = _Vocabulary(evidence, [windows.tokens, *(table[table != NO_TOKEN] for table in tables)])
    pages = [_page(evidence, feature, vocabulary) for feature in features]
    for page, contexts in zip(pages, _contexts(evidence, features, windows, vocabulary), strict=True):
        page["contexts"] = contexts
    return {"first": features.start, "pages": pages, "vocabulary": vocabulary.texts}


def _page(evidence: Evidence, feature: int, vocabulary: _Vocabulary) -> dict[str, Any]:
    """A feature's page but its contexts."""
    arrays = evidence.arrays
    related = relatives(evidence, feature)
    page: dict[str, Any] = {
        "mean": rounded(arrays["mean"][feature]),
        "lost_prefix": rounded(arrays["fvu_lost_prefix"][feature]),
        "percentiles": [rounded(arrays["percentiles"][feature, q - 1]) for q in _SHOWN_PERCENTILES],
        "histogram": arrays["histogram"][feature].tolist(),
        "intervals": arrays["intervals"][feature].tolist(),
        "positions": position_rates(evidence, feature),
        "tokens": {
            position: _tokens(evidence, feature, position, vocabulary) for position in ("before", "on", "after")
        },
        "relatives": {
            kind: [list(entry.values()) for entry in found[:_SHOWN_FINER]] for kind, found in related.items()
        },
        "finer": len(related["finer"]),
    }
    if "raised_token" in arrays:
        page["logits"] = {
            direction: _logits(evidence, feature, direction, vocabulary) for direction in ("raised", "lowered")
        }
    if "logit_histogram" in arrays:
        page["logit_histogram"] = arrays["logit_histogram"][feature].tolist()
    if "formed_step" in arrays:
        page["formed"] = _formed(evidence, feature, vocabulary)
    if written := writes(evidence, feature):
        page["writes"] = [list(entry.values()) for entry in written]
    if aligned := neurons(evidence, feature):
        page["neurons"] = [list(entry.values()) for entry in aligned]
    return page


def _tokens(evidence: Evidence, feature: int, position: str, vocabulary: _Vocabulary) -> list[list[Any]]:
    """Number in the vocabulary, count, share, lift, recall."""
    columns = [evidence.arrays[f"{position}_{name}"][feature].tolist() for name in ("count", "share", "lift", "recall")]
    tokens = evidence.arrays[f"{position}_token"][feature]
    tokens = tokens[tokens != NO_TOKEN]
    rows = zip(vocabulary.numbers(tokens), *columns, strict=False)
    return [[number, count, *map(rounded, rates)] for number, count, *rates in rows]


def _logits(evidence: Evidence, feature: int, direction: str, vocabulary: _Vocabulary) -> list[list[Any]]:
    """Number in the vocabulary, logit."""
    numbers = vocabulary.numbers(evidence.arrays[f"{direction}_token"][feature])
    logits = evidence.arrays[f"{direction}_logit"][feature].tolist()
    return [[number, rounded(logit)] for number, logit in zip(numbers, logits, strict=True)]


def _formed(evidence: Evidence, feature: int, vocabulary: _Vocabulary) -> list[list[Any]]:
    """Of each step that the head names: firings, largest value, numbers of tokens in the vocabulary."""
    names = ("formed_firings", "formed_largest", "formed_token")
    steps = zip(*(evidence.arrays[name][feature] for name in names), strict=True)
    return [
        [int(firings), rounded(largest), vocabulary.numbers(tokens[tokens != NO_TOKEN])]
        for firings, largest, tokens in steps
    ]


def _contexts(
    evidence: Evidence, features: range, windows: _Windows, vocabulary: _Vocabulary
) -> Generator[dict[str, list[list[Any]]]]:
    """Of every feature, by kind: document, row, place of the row in the window, tokens, and (place, value) pairs.

    The pairs, one behind the other in one list, are those where the feature fires.
    """
    arrays = evidence.arrays
    numbers = vocabulary.numbers(windows.tokens)
    documents = evidence.text.document[np.maximum(windows.row, 0)].tolist()
    start = 0
    for number, feature in enumerate(features):
        own = slice(*arrays["entry_offsets"][feature : feature + 2])
        firing = arrays["entry_row"][own]
        values = significant(arrays["entry_value"][own]).tolist()
        bounds = np.searchsorted(firing, np.stack([windows.first[number], windows.end[number]]))
        table = np.stack([windows.row[number], windows.first[number], windows.end[number], *bounds], axis=1).tolist()
        found: list[list[Any]] = []
        for (row, first, end, low, high), document in zip(table, documents[number], strict=True):
            pairs: list[float] = [0] * (2 * (high - low))
            pairs[::2] = (firing[low:high] - first).tolist()
            pairs[1::2] = values[low:high]
            found.append([document, row, row - first, numbers[start : start + end - first], pairs])
            start += end - first
        yield {
            kind: [context for context in found[columns] if context[1] != NO_ROW]
            for kind, columns in windows.kinds.items()
        }


def significant(values: Float[np.ndarray, " values"]) -> Float[np.ndarray, " values"]:
    """Positive values with four significant digits; see ``evaluate.features.text.page.rounded``."""
    exact = values.astype(np.float64)
    # A whole number over a power of ten is the nearest float to that decimal, which JSON then writes in full and short.
    scale = 10.0 ** (3 - np.floor(np.log10(exact)))
    return np.round(exact * scale) / scale
