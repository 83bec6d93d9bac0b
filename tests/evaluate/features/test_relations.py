"""Cosines, shared rows, and coarser and finer features, against the dense code and weights."""

import numpy as np
import pytest

from evaluate.features import relations
from evaluate.features.relations import NO_FEATURE, children_of, shared_rows


def _cosine(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("matrix", ["decoder", "encoder"])
def test_the_nearest_are_those_of_largest_cosine(toy, matrix: str) -> None:
    directions = toy.trained.W_dec if matrix == "decoder" else toy.trained.W_enc
    cosine = _cosine(directions.double().numpy())
    np.fill_diagonal(cosine, -2)
    found, score = toy.evidence.arrays[f"{matrix}_feature"], toy.evidence.arrays[f"{matrix}_score"]
    best = np.sort(cosine, axis=1)[:, ::-1][:, : found.shape[1]]
    np.testing.assert_allclose(score, best, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(cosine, found.astype(int), axis=1), best, atol=1e-5)


def test_features_of_the_same_rows_are_ranked_by_overlap(toy) -> None:
    fires = (toy.dense > 0).astype(int)
    both, counts = fires.T @ fires, fires.sum(axis=0)
    overlap = both / np.maximum(1, counts[:, None] + counts[None] - both)
    np.fill_diagonal(overlap, 0)
    arrays = toy.evidence.arrays
    best = np.sort(overlap, axis=1)[:, ::-1][:, : arrays["near_score"].shape[1]]
    np.testing.assert_allclose(arrays["near_score"], best, rtol=1e-6)
    there = arrays["near_feature"] != NO_FEATURE
    owner, column = np.nonzero(there)
    assert np.array_equal(arrays["near_count"][there], both[owner, arrays["near_feature"][owner, column]])


def test_coarser_relatives_are_of_shorter_prefixes_and_fire_more_often_with_the_feature(toy) -> None:
    fires = (toy.dense > 0).astype(int)
    both, counts = fires.T @ fires, fires.sum(axis=0)
    group = np.searchsorted(toy.trained.prefixes, np.arange(toy.trained.dict_size), side="right")
    added = both / np.maximum(1, counts)[:, None] - counts[None] / len(toy.kept)
    added[(group[:, None] <= group[None]) | (both == 0) | (added < 0)] = 0
    arrays = toy.evidence.arrays
    best = np.sort(added, axis=1)[:, ::-1][:, : arrays["coarser_score"].shape[1]]
    np.testing.assert_allclose(arrays["coarser_score"], best, rtol=1e-5, atol=1e-9)
    assert (arrays["coarser_feature"][:8] == NO_FEATURE).all()
    cosine = _cosine(toy.trained.W_dec.double().numpy())
    owner, column = np.nonzero(arrays["coarser_feature"] != NO_FEATURE)
    np.testing.assert_allclose(
        arrays["coarser_decoder_cosine"][owner, column],
        cosine[owner, arrays["coarser_feature"][owner, column]],
        atol=1e-5,
    )


def test_counting_a_few_rows_at_a_time_changes_nothing(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = shared_rows(toy.code, toy.firings, toy.trained.prefixes, 6)
    monkeypatch.setattr(relations, "_COUNTED_ROWS", 7)
    pieces = shared_rows(toy.code, toy.firings, toy.trained.prefixes, 6)
    for name in ("near", "coarser"):
        assert np.array_equal(getattr(expected, name).feature, getattr(pieces, name).feature)
    assert np.array_equal(expected.near_count, pieces.near_count)


def test_equal_scores_are_ordered_by_number(toy) -> None:
    near = toy.evidence.arrays["near_feature"]
    score = toy.evidence.arrays["near_score"]
    same = (score[:, 1:] == score[:, :-1]) & (near[:, 1:] != NO_FEATURE)
    assert (near[:, 1:][same] > near[:, :-1][same]).all()


def test_children_name_their_parent() -> None:
    assert children_of(np.array([-1, 0, -1, 0, 2])) == {0: [1, 3], 2: [4]}
