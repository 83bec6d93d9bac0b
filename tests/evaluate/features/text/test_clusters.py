"""A cluster is named by what its features fire on more than others do."""

from dataclasses import replace

import numpy as np
import pytest

from evaluate.features.text.clusters import cluster_list


def test_clusters_are_listed_with_their_tokens(toy) -> None:
    evidence = toy.evidence
    found = cluster_list(evidence)
    number = evidence.arrays["cluster"]
    assert [cluster.features.tolist() for cluster in found] == [
        np.flatnonzero(number == cluster).tolist() for cluster in range(number.max() + 1)
    ]
    tokens, shares = evidence.arrays["on_token"][:, :3], evidence.arrays["on_share"][:, :3]

    def mean(features: np.ndarray, token: int) -> float:
        return sum(float(shares[feature][tokens[feature] == token].sum()) for feature in features) / len(features)

    everything = np.flatnonzero(evidence.arrays["firings"] > 0)
    for cluster in found:
        weights = {
            token: mean(cluster.features, token) - mean(everything, token)
            for token in np.unique(tokens[cluster.features])
        }
        best = sorted(weights.values(), reverse=True)[: len(cluster.tokens)]
        assert [weights[token] for token in cluster.tokens] == pytest.approx(best)
        assert min(best) > 0


def test_without_clusters_there_is_no_list(toy) -> None:
    nothing = replace(toy.evidence, arrays={**toy.evidence.arrays, "cluster": np.full(64, -1)})
    assert cluster_list(nothing) == []
