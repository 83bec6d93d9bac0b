"""Which rows are shown for a feature, and the tokens on either side of each.

    strongest    the largest value in each document, of the documents where that is largest
    intervals    from each interval of activation, firings drawn at random
    uniform      from all firings, drawn at random
    silent       rows of documents in which the feature fires, with no firing in the tokens shown

"At random" means: those with the smallest hashes of (seed, feature, row). So a choice depends on the rows alone, never
on the order in which they were read. Rows of special tokens are never chosen, and a window ends before one.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from evaluate.features.config import FeatureSettings
from evaluate.features.firings import Firings, entry_hashes

STRONGEST = "strongest"
UNIFORM = "uniform"
SILENT = "silent"
NO_ROW = -1
"""Where a feature has fewer contexts."""
_SILENT_TRIES = 8
"""Rows tried for each silent context that is wanted."""


def interval_name(number: int) -> str:
    """The name of interval ``number``, counted from the weakest."""
    return f"interval_{number}"


@dataclass(frozen=True)
class Text:
    """The rows that the evidence is taken from, and for each the run of neighbours that may be shown with it.

    A run is a stretch of one document in one context, without special tokens: rows ``run_start`` to ``run_end``.
    """

    tokens: Int[np.ndarray, " rows"]
    document: Int[np.ndarray, " rows"]
    position: Int[np.ndarray, " rows"]
    counted: Bool[np.ndarray, " rows"]
    run_start: Int[np.ndarray, " rows"]
    run_end: Int[np.ndarray, " rows"]

    def window(self, row: int, tokens: int) -> tuple[int, int]:
        """First row and end of the window of up to ``tokens`` rows on either side."""
        return max(int(self.run_start[row]), row - tokens), min(int(self.run_end[row]), row + tokens + 1)

    def windows(
        self, row: Int[np.ndarray, " contexts"], tokens: int
    ) -> tuple[Int[np.ndarray, " contexts"], Int[np.ndarray, " contexts"]]:
        """The same of many rows."""
        first = np.maximum(self.run_start[row], row - tokens)
        end = np.minimum(self.run_end[row], row + tokens + 1)
        return first, end


def text_of(
    tokens: Int[np.ndarray, " rows"],
    document: Int[np.ndarray, " rows"],
    position: Int[np.ndarray, " rows"],
    counted: Bool[np.ndarray, " rows"],
) -> Text:
    """The same rows with their runs."""
    breaks = np.ones(len(tokens) + 1, dtype=bool)
    follows = (document[1:] == document[:-1]) & (position[1:] == position[:-1] + 1) & counted[1:] & counted[:-1]
    breaks[1:-1] = ~follows
    bounds = np.flatnonzero(breaks)
    run = np.cumsum(breaks[:-1]) - 1
    return Text(tokens, document, position, counted, run_start=bounds[run], run_end=bounds[run + 1])


def choose_contexts(
    firings: Firings, text: Text, settings: FeatureSettings
) -> dict[str, Int[np.ndarray, "features contexts"]]:
    """Rows of every kind of context, by name; -1 where there are fewer than asked for."""
    drawn = _drawn_order(firings, settings.seed)
    interval = firings.bins(settings.intervals)[drawn]
    chosen = {STRONGEST: strongest(firings, text, settings.top_contexts)}
    for number in range(settings.intervals):
        chosen[interval_name(number)] = _table(firings, drawn[interval == number], settings.interval_contexts)
    # Another order than that of the intervals, or the two samples would show the same rows.
    chosen[UNIFORM] = _table(firings, _drawn_order(firings, settings.seed + 1), settings.uniform_contexts)
    chosen[SILENT] = silent(firings, text, chosen[STRONGEST], settings)
    return chosen


def strongest(firings: Firings, text: Text, count: int) -> Int[np.ndarray, "features {count}"]:
    """The rows with the largest values, strongest first, one for each document; of equal values the earlier row."""
    order = np.lexsort((firings.row, -firings.value, firings.feature))
    document = np.unique(text.document[firings.row[order]], return_inverse=True)[1]
    pair = firings.feature[order].astype(np.int64) * (int(document.max(initial=0)) + 1) + document
    first_of_pair = np.sort(np.unique(pair, return_index=True)[1])
    return _table(firings, order[first_of_pair], count)


def silent(
    firings: Firings, text: Text, near: Int[np.ndarray, "features strongest"], settings: FeatureSettings
) -> Int[np.ndarray, "features contexts"]:
    """Rows of the documents of ``near`` with no firing in their window; -1 where none was found in a few tries."""
    count = settings.silent_contexts
    chosen = np.full((len(near), count), NO_ROW, dtype=np.int64)
    found = np.zeros(len(near), dtype=np.int64)
    features = np.arange(len(near))
    known = (near != NO_ROW).sum(axis=1)
    for attempt in range(count * _SILENT_TRIES):
        wanting = np.flatnonzero((known > 0) & (found < count))
        row = _drawn_rows(text, near[wanting, attempt % known[wanting]], features[wanting], settings.seed + 2 + attempt)
        first, end = text.windows(row, settings.context_tokens)
        bounds = firings.fires_within(wanting, first, end)
        taken = (chosen[wanting] == row[:, None]).any(axis=1)
        good = text.counted[row] & (bounds[:, 0] == bounds[:, 1]) & ~taken
        chosen[wanting[good], found[wanting[good]]] = row[good]
        found[wanting[good]] += 1
    return chosen


def _drawn_rows(
    text: Text, near: Int[np.ndarray, " features"], feature: Int[np.ndarray, " features"], seed: int
) -> Int[np.ndarray, " features"]:
    """A row of the same document as each of ``near``. A document's rows are neighbours in a split."""
    starts = np.flatnonzero(np.diff(text.document, prepend=text.document[:1] - 1))
    ends = np.append(starts[1:], len(text.document))
    which = np.searchsorted(starts, near, side="right") - 1
    return starts[which] + entry_hashes(feature, near, seed) % (ends - starts)[which]


def _drawn_order(firings: Firings, seed: int) -> Int[np.ndarray, " entries"]:
    """Entries feature by feature, those of each feature in the order of their hashes."""
    return np.lexsort((entry_hashes(firings.feature, firings.row, seed), firings.feature))


def _table(firings: Firings, entries: Int[np.ndarray, " some"], count: int) -> Int[np.ndarray, "features {count}"]:
    """The rows of the first ``count`` of each feature's ``entries``, which come feature by feature."""
    feature = firings.feature[entries]
    starts = np.searchsorted(feature, np.arange(firings.dict_size))
    rank = np.arange(len(entries)) - starts[feature]
    kept = rank < count
    table = np.full((firings.dict_size, count), NO_ROW, dtype=np.int64)
    table[feature[kept], rank[kept]] = firings.row[entries[kept]]
    return table
