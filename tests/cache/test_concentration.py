"""The shares of the largest rows and dimensions, against five lines of float64."""

import numpy as np
import pytest

from cache.config import CacheSettings
from cache.reader import CacheReader
from cache.tools.concentration import concentration
from cache.writer import CacheWriter

ROWS, WIDTH = 3000, 24


def write(path, target):
    """A cache of these targets; every fifth token is special, and holds the largest rows of all."""
    settings = CacheSettings(dtype="float32", chunk_rows=64, shard_rows=512, segment_rows=1024)
    sizes = {"d_source": 2, "d_target": WIDTH, "train_rows": len(target), "held_out_rows": 0}
    tokens = (np.arange(len(target)) % 5).astype(np.int32)
    columns = (tokens, np.arange(len(target)) // 50, (np.arange(len(target)) % 50).astype(np.int32))
    with CacheWriter(path, identity={}, settings=settings, special_ids=[0], arrays={}, **sizes) as writer:
        writer.append(target[:, :2], target, *columns, held_out=False, cursor=0)
    return CacheReader.open(path)


def targets(*, ruled):
    random = np.random.default_rng(0)
    target = random.standard_normal((ROWS, WIDTH)).astype(np.float32)
    target[::5] *= 1000
    if ruled:
        target[[101, 777, 1503], 7] += 500
    return target


@pytest.mark.parametrize("limit_rows", [None, 1100])
def test_shares_are_those_of_the_definition(tmp_path, limit_rows):
    reader = write(tmp_path, targets(ruled=True))
    split = reader.split("train")
    rows = split.rows(slice(0, limit_rows or ROWS))
    x = rows.target.double().numpy()[rows.tokens != 0]
    squares = (x - x.mean(axis=0)) ** 2
    by_row, by_dimension = np.sort(squares.sum(axis=1))[::-1], np.sort(squares.sum(axis=0))[::-1]
    found = concentration(reader, limit_rows=limit_rows)
    assert found.rows == len(x)
    for fraction in (0.0001, 0.001, 0.01):
        expected = by_row[: max(1, round(fraction * len(x)))].sum() / squares.sum()
        assert found.row_shares[fraction] == pytest.approx(expected, rel=1e-12)
    for count in (1, 2, 10):
        assert found.dimension_shares[count] == pytest.approx(by_dimension[:count].sum() / squares.sum(), rel=1e-12)


def test_the_rows_and_dimensions_that_dominate_are_named(tmp_path):
    reader = write(tmp_path, targets(ruled=True))
    found = concentration(reader)
    documents = {(row.document, row.position, row.token) for row in found.largest_rows[:3]}
    assert documents == {(2, 1, 1), (15, 27, 2), (30, 3, 3)}
    assert found.largest_dimensions[0][0] == 7
    assert all(row.norm > 490 for row in found.largest_rows[:3])
    assert "2 of 2,400 rows have" in found.warning
    assert "dimensions 7 and" in found.warning
    assert found.warning.endswith("FVU is about them.")


def test_benign_rows_bring_no_warning(tmp_path):
    found = concentration(write(tmp_path, targets(ruled=False)))
    assert found.warning == ""
    assert found.row_shares[0.01] < 0.03
