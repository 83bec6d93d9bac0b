"""Counts, histograms and percentiles against five lines over the dense code."""

import math

import numpy as np

from evaluate.features.firings import HISTOGRAM_BINS, PERCENTILES, entry_hashes


def test_counts_largest_and_means_are_those_of_the_dense_code(toy) -> None:
    arrays = toy.evidence.arrays
    assert np.array_equal(arrays["firings"], (toy.dense > 0).sum(axis=0))
    np.testing.assert_allclose(arrays["largest"], toy.dense.max(axis=0), rtol=1e-5)
    fires = np.maximum(1, (toy.dense > 0).sum(axis=0))
    np.testing.assert_allclose(arrays["mean"], toy.dense.sum(axis=0) / fires, rtol=1e-5)


def test_histogram_percentiles_and_intervals_are_counted_one_by_one(toy) -> None:
    arrays, firings = toy.evidence.arrays, toy.firings
    for feature in range(0, toy.trained.dict_size, 7):
        values = firings.value[firings.offsets[feature] : firings.offsets[feature + 1]].astype(np.float64)
        if not len(values):
            continue
        for name, bins in (("histogram", HISTOGRAM_BINS), ("intervals", toy.settings.intervals)):
            expected = [0] * bins
            for value in values:
                expected[min(bins - 1, max(0, math.ceil(value / values.max() * bins) - 1))] += 1
            assert arrays[name][feature].tolist() == expected
        ordered = sorted(values)
        expected = [ordered[math.ceil(q * len(values) / 100) - 1] for q in PERCENTILES]
        np.testing.assert_allclose(arrays["percentiles"][feature], expected, rtol=1e-6)


def test_firings_in_a_window_are_found(toy) -> None:
    firings = toy.firings
    feature, first, end = np.array([5, 5, 9]), np.array([0, 100, 30]), np.array([1600, 120, 31])
    bounds = firings.fires_within(feature, first, end)
    for number, (low, high) in enumerate(bounds):
        inside = np.flatnonzero(toy.dense[first[number] : end[number], feature[number]] > 0) + first[number]
        assert firings.row[low:high].tolist() == inside.tolist()


def test_hashes_depend_on_feature_row_and_seed() -> None:
    feature, row = np.repeat(np.arange(50), 50), np.tile(np.arange(50), 50)
    hashes = entry_hashes(feature, row, 0)
    assert len(np.unique(hashes)) == 2500
    assert (hashes >= 0).all()
    assert not np.array_equal(hashes, entry_hashes(feature, row, 1))
    assert abs(hashes.astype(np.float64).mean() / 2**62 - 1) < 0.05
