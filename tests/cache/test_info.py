import numpy as np
import pytest

from cache.tools.info import cache_info
from cache.tools.mixing import measure_mixing


def test_the_numbers_of_a_cache_are_those_of_its_rows(whole_cache, toy):
    info = cache_info(whole_cache)
    source, _, tokens, document, _ = toy.text
    text = np.arange(len(tokens)) // 5 % 4 == 3
    kept = tokens[~text][:50] != 0
    rows = source[~text][:50][kept].astype(np.float64)
    assert info.rows == info.committed == {"train": 50, "held_out": 11}
    assert info.special_rows == 50 - kept.sum()
    assert info.source.mean_square == pytest.approx((rows**2).mean(), rel=1e-12)
    assert info.source.variance_sum == pytest.approx(rows.var(axis=0).sum(), rel=1e-12)
    assert info.source.largest_norm == pytest.approx(np.linalg.norm(rows, axis=1).max(), rel=1e-12)
    assert info.documents == {
        name: len(np.unique(document[chosen][:n])) for name, chosen, n in (("train", ~text, 50), ("held_out", text, 11))
    }
    assert info.complete
    assert 0.5 < info.mixing.score < 1.5
    assert info.bytes == sum(file.stat().st_size for file in (whole_cache / "rows.zarr").rglob("*") if file.is_file())


def test_an_unfinished_cache_says_how_far_it_is(tmp_path, toy):
    toy.write(tmp_path, stop=6)
    info = cache_info(tmp_path)
    assert not info.complete
    assert info.committed == {"train": 16, "held_out": 4}
    assert info.mixing is None


def test_a_uniform_shuffle_scores_one():
    random = np.random.default_rng(0)
    documents = np.repeat(np.arange(400), random.integers(1, 200, 400))
    batches = [random.permutation(len(documents))[:512] for _ in range(40)]
    mixing = measure_mixing(documents, batches)
    assert mixing.score == pytest.approx(1, abs=0.01)
    assert mixing.pairs == pytest.approx(mixing.pairs_ideal, rel=0.1)


def test_the_order_of_the_text_scores_low():
    documents = np.repeat(np.arange(400), 100)
    mixing = measure_mixing(documents, [np.arange(start, start + 512) for start in range(0, 30_000, 512)])
    assert mixing.score < 0.05
    assert mixing.pairs > 50 * mixing.pairs_ideal


def test_the_ideal_is_the_expectation_over_all_batches():
    documents = np.array([0, 0, 0, 1, 1, 2])
    pairs = [(i, j) for i in range(6) for j in range(i + 1, 6)]
    mixing = measure_mixing(documents, [np.array(pair) for pair in pairs])
    assert mixing.distinct == pytest.approx(mixing.distinct_ideal, rel=1e-12)
    assert mixing.pairs == pytest.approx(mixing.pairs_ideal, rel=1e-12)
