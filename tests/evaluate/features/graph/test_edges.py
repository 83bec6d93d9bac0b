"""Every pair is one edge, with the sum of its two scores."""

import numpy as np

from evaluate.features.graph.edges import edges_of


def test_every_pair_is_one_edge_with_the_sum_of_its_scores(toy) -> None:
    arrays = toy.evidence.arrays
    edges = edges_of(arrays)
    expected: dict[tuple[int, int], dict[str, float]] = {}
    for kind in ("near", "decoder"):
        for own, (others, scores) in enumerate(zip(arrays[f"{kind}_feature"], arrays[f"{kind}_score"], strict=True)):
            for neighbour, score in zip(others.tolist(), scores.tolist(), strict=True):
                if neighbour >= 0:
                    pair = (min(own, neighbour), max(own, neighbour))
                    expected.setdefault(pair, {})[kind] = max(0.0, score, expected.get(pair, {}).get(kind, 0.0))
    weights = {pair: sum(scores.values()) for pair, scores in expected.items() if sum(scores.values()) > 0}
    assert list(zip(edges.first.tolist(), edges.second.tolist(), strict=True)) == sorted(weights)
    assert np.allclose(edges.weight, [weights[pair] for pair in sorted(weights)])


def test_a_dictionary_of_one_feature_has_no_edges() -> None:
    nobody = np.full((1, 0), -1)
    none = np.zeros((1, 0), dtype=np.float32)
    edges = edges_of({"near_feature": nobody, "near_score": none, "decoder_feature": nobody, "decoder_score": none})
    assert len(edges.first) == 0
