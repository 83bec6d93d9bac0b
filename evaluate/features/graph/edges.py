"""The graph of a dictionary: which features are joined, and how strongly.

    weight(f, g) = overlap(f, g) + max(0, cosine of W_dec[f] and W_dec[g])

for every pair of which one names the other among its nearest by overlap or decoder (``evaluate.features.relations``); a
term counts as 0 where neither names the other for it. So the graph is sparse, and needs nothing but the evidence.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from evaluate.features.relations import NO_FEATURE


@dataclass(frozen=True)
class Edges:
    """Every pair once: ``first`` < ``second``, in their order; ``weight`` above 0."""

    first: Int[np.ndarray, " edges"]
    second: Int[np.ndarray, " edges"]
    weight: Float[np.ndarray, " edges"]


def edges_of(arrays: Mapping[str, Shaped[np.ndarray, "..."]]) -> Edges:
    """The edges between the features of an evidence's arrays."""
    lists = [_listed(arrays[f"{kind}_feature"], arrays[f"{kind}_score"]) for kind in ("near", "decoder")]
    key = [pair for pair, _ in lists]
    score = [np.where(pair >= 0, value, 0) for pair, value in lists]
    pairs, pair_index = np.unique(np.concatenate(key), return_inverse=True)
    # Both features of a pair may name it, with one and the same score: the larger of equals.
    weight = np.zeros(len(pairs))
    start = 0
    for own in score:
        largest = np.zeros(len(pairs))
        np.maximum.at(largest, pair_index[start : start + len(own)], own)
        weight += largest
        start += len(own)
    kept = weight > 0
    size = np.int64(1) << 32
    return Edges(pairs[kept] // size, pairs[kept] % size, weight[kept])


def _listed(
    feature: Int[np.ndarray, "features neighbours"], score: Float[np.ndarray, "features neighbours"]
) -> tuple[Int[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]:
    """Both numbers of a pair in one, the smaller first, and its score."""
    own, column = np.nonzero(feature != NO_FEATURE)
    neighbour = feature[own, column].astype(np.int64)
    pair = np.minimum(own, neighbour) << 32 | np.maximum(own, neighbour)
    return pair, score[own, column].astype(np.float64)
