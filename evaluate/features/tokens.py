"""The tokens that a feature fires on, and those before and after, beside how common they are.

Over the firings of f whose neighbour at ``offset`` (-1, 0 or 1) may be shown, which is n(f) of them:

    count(f, v)  = firings whose neighbour is token v
    share(f, v)  = count(f, v) / n(f)
    lift(f, v)   = share(f, v) / share of v among all rows counted
    recall(f, v) = count(f, v) / rows whose neighbour is v
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from evaluate.features.contexts import Text
from evaluate.features.firings import POSITION_BINS, Firings

NO_TOKEN = -1
"""Where a list has fewer tokens."""


@dataclass(frozen=True)
class TokenTable:
    """The most frequent tokens of every feature, most frequent first; token -1 and zeros where there are fewer."""

    token: Int[np.ndarray, "features tokens"]
    count: Int[np.ndarray, "features tokens"]
    share: Float[np.ndarray, "features tokens"]
    lift: Float[np.ndarray, "features tokens"]
    recall: Float[np.ndarray, "features tokens"]


def token_table(firings: Firings, text: Text, *, offset: int, count: int) -> TokenTable:
    """The ``count`` tokens that most often stand ``offset`` from where each feature fires; of equals, the lower id."""
    neighbour = firings.row.astype(np.int64) + offset
    shown = (neighbour >= text.run_start[firings.row]) & (neighbour < text.run_end[firings.row])
    feature = firings.feature[shown].astype(np.int64)
    token = text.tokens[neighbour[shown]].astype(np.int64)

    size = int(text.tokens.max(initial=0)) + 1
    pairs, counts = np.unique(feature * size + token, return_counts=True)
    order = np.lexsort((pairs, -counts, pairs // size))
    owner = pairs[order] // size
    rank = np.arange(len(owner)) - np.searchsorted(owner, np.arange(firings.dict_size))[owner]
    kept = order[rank < count]
    cells = (pairs[kept] // size, rank[rank < count])

    tokens = np.full((firings.dict_size, count), NO_TOKEN, dtype=np.int64)
    table = np.zeros_like(tokens)
    tokens[cells] = pairs[kept] % size
    table[cells] = counts[kept]
    return _with_rates(tokens, table, np.bincount(feature, minlength=firings.dict_size), _rates(text, offset, size))


@dataclass(frozen=True)
class _Rates:
    """How often each token stands in a counted row, and beside one at the offset."""

    base: Float[np.ndarray, " vocabulary"]
    beside: Int[np.ndarray, " vocabulary"]


def _rates(text: Text, offset: int, size: int) -> _Rates:
    rows = np.flatnonzero(text.counted)
    base = np.bincount(text.tokens[rows], minlength=size) / max(1, len(rows))
    neighbour = rows + offset
    shown = (neighbour >= text.run_start[rows]) & (neighbour < text.run_end[rows])
    return _Rates(base, np.bincount(text.tokens[neighbour[shown]], minlength=size))


def _with_rates(
    tokens: Int[np.ndarray, "features tokens"],
    counts: Int[np.ndarray, "features tokens"],
    shown: Int[np.ndarray, " features"],
    rates: _Rates,
) -> TokenTable:
    share = counts / np.maximum(1, shown)[:, None]
    known = np.maximum(tokens, 0)
    there = tokens != NO_TOKEN
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = np.where(there, share / rates.base[known], 0.0)
        recall = np.where(there, counts / rates.beside[known], 0.0)
    return TokenTable(tokens, counts, share, lift, recall)


def position_bins(text: Text, context: int) -> Int[np.ndarray, " rows"]:
    """Which of a few equal stretches of the context each row lies in."""
    return np.minimum(text.position.astype(np.int64) * POSITION_BINS // max(1, context), POSITION_BINS - 1)


def positions(
    firings: Firings, text: Text, context: int
) -> tuple[Int[np.ndarray, "features bins"], Int[np.ndarray, " bins"]]:
    """Firings of each feature, and all rows counted, by stretch of the context."""
    bins = position_bins(text, context)
    everything = np.bincount(bins[text.counted], minlength=POSITION_BINS)
    return firings.tally(bins[firings.row], POSITION_BINS), everything
