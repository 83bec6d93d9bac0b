"""A map is within its borders, the same every time, and puts joined features near each other."""

import numpy as np
import pytest

from evaluate.features.graph.edges import Edges
from evaluate.features.graph.layout import layout, principal


def _groups(count: int, size: int) -> Edges:
    pairs = [
        (group * size + feature, group * size + later)
        for group in range(count)
        for feature in range(size)
        for later in range(feature + 1, size)
    ]
    first, second = np.array(sorted(pairs)).T
    return Edges(first, second, np.ones(len(first)))


def test_joined_features_are_near_each_other() -> None:
    directions = np.random.default_rng(0).normal(size=(120, 16)).astype(np.float32)
    places = layout(_groups(12, 10), directions, seed=0)
    assert places.shape == (120, 2)
    assert ((places >= 0) & (places <= 1)).all()
    distance = np.linalg.norm(places[:, None] - places, axis=2) + 9 * np.eye(120)
    nearest = np.argsort(distance, axis=1)[:, :9]
    assert (nearest // 10 == np.arange(120)[:, None] // 10).mean() > 0.9
    assert np.array_equal(places, layout(_groups(12, 10), directions, seed=0))
    assert not np.array_equal(places, layout(_groups(12, 10), directions, seed=1))


def test_the_map_begins_at_the_first_two_principal_components() -> None:
    directions = np.random.default_rng(1).normal(size=(50, 6)) * [9, 5, 1, 1, 1, 1]
    centred = directions - directions.mean(axis=0)
    components = np.linalg.svd(centred, full_matrices=False)[2][:2]
    expected = centred @ components.T
    found = principal(directions.astype(np.float32))
    assert np.abs(found) == pytest.approx(np.abs(expected / expected.std(axis=0)), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("width", [1, 2])
def test_narrow_and_equal_decoders_have_a_map_too(width: int) -> None:
    nothing = Edges(np.array([], dtype=np.int64), np.array([], dtype=np.int64), np.array([]))
    places = layout(nothing, np.ones((4, width), dtype=np.float32), seed=0)
    assert np.isfinite(places).all()
