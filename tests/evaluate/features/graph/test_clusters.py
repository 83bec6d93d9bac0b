"""Clusters are features joined by edges, numbered from the largest, without features that never fire."""

from itertools import pairwise

import numpy as np

from evaluate.features.graph.clusters import NO_CLUSTER, clusters
from evaluate.features.graph.edges import Edges, edges_of

_SIZES = (5, 14, 13, 12, 11, 10, 9, 8, 7, 6)


def _cliques(*sizes: int) -> Edges:
    """Groups within which everything is joined, and weak edges from each group's first feature to the next one's."""
    starts = np.cumsum([0, *sizes[:-1]]).tolist()
    pairs = [
        (start + feature, start + later, 1.0)
        for start, size in zip(starts, sizes, strict=True)
        for feature in range(size)
        for later in range(feature + 1, size)
    ]
    pairs += [(feature, later, 0.01) for feature, later in pairwise(starts)]
    first, second, weight = zip(*sorted(pairs), strict=True)
    return Edges(np.array(first), np.array(second), np.array(weight))


def test_groups_that_are_joined_within_are_the_clusters() -> None:
    found = clusters(_cliques(*_SIZES), np.ones(sum(_SIZES) + 2, dtype=bool), seed=0)
    order = sorted(range(len(_SIZES)), key=lambda index: -_SIZES[index])
    expected = [number for index, size in enumerate(_SIZES) for number in [order.index(index)] * size]
    assert found.tolist() == [*expected, NO_CLUSTER, NO_CLUSTER]


def test_silent_features_and_pairs_are_in_none() -> None:
    fires = np.ones(sum(_SIZES), dtype=bool)
    fires[1:4] = False
    found = clusters(_cliques(*_SIZES), fires, seed=0)
    assert found[: _SIZES[0]].tolist() == [NO_CLUSTER] * _SIZES[0]
    assert found[_SIZES[0] :].tolist() == [number for number, size in enumerate(_SIZES[1:]) for _ in range(size)]


def test_the_same_evidence_gives_the_same_clusters(toy) -> None:
    arrays = toy.evidence.arrays
    again = clusters(edges_of(arrays), arrays["firings"] > 0, seed=toy.settings.seed)
    assert np.array_equal(again, arrays["cluster"])
    sizes = np.bincount(again[again >= 0])
    assert (np.diff(sizes) <= 0).all()
