"""The score of mixing against counting by hand, and its two extremes."""

from math import comb

import numpy as np
import pytest

from cache.tools.mixing import measure_mixing


def test_the_ideal_is_that_of_the_formula_and_a_shuffle_reaches_it():
    documents = np.repeat(np.arange(20), 10)
    order = np.random.default_rng(0)
    batches = [order.permutation(200)[:16] for _ in range(400)]
    found = measure_mixing(documents, batches)
    assert found.distinct_ideal == pytest.approx(20 * (1 - comb(190, 16) / comb(200, 16)))
    assert found.pairs_ideal == pytest.approx(20 * 10 * 9 / (200 * 199))
    assert found.score == pytest.approx(1, abs=0.02)
    assert found.pairs == pytest.approx(found.pairs_ideal, rel=0.1)


def test_batches_of_one_document_score_low():
    documents = np.repeat(np.arange(20), 10)
    found = measure_mixing(documents, [np.arange(10), np.arange(10, 20)])
    assert (found.distinct, found.pairs, found.batches) == (1, 1, 2)
    assert found.score < 0.2
