"""A cache seen as an autoencoder sees it, against the cache itself."""

import numpy as np
import pytest
import torch

from cache.loader import Loader
from cache.open import open_cache


@pytest.fixture
def folder(toy, tmp_path):
    with toy.writer(tmp_path / "cache") as writer:
        toy.feed(writer)
    return tmp_path / "cache"


@pytest.mark.parametrize("column", ["source", "target"])
def test_source_and_target_are_the_column_that_is_named(folder, column):
    both = open_cache(folder)
    seen = open_cache(folder, column=column)
    for name in ("train", "held_out"):
        rows = seen.split(name).rows(slice(None))
        expected = getattr(both.split(name).rows(slice(None)), column)
        assert torch.equal(rows.source, expected)
        assert torch.equal(rows.target, expected)
    assert seen.d_source == seen.d_target == getattr(both, f"d_{column}")
    assert seen.fingerprint == both.fingerprint
    assert seen.identity["source_site"] == seen.identity["target_site"] == both.identity.get(f"{column}_site")
    expected = getattr(both.statistics, column)
    assert np.array_equal(seen.statistics.source.mean, expected.mean)
    assert np.array_equal(seen.statistics.target.variance, expected.variance)


def test_a_loader_reads_only_the_files_of_that_column(folder):
    seen = open_cache(folder, column="target")
    with Loader(seen, batch_rows=8, seed=0, epochs=1) as batches:
        values = torch.cat([batch.source for batch in batches])
    ordinary = seen.split("train").rows(slice(None))
    kept = torch.from_numpy(seen.split("train").is_ordinary(ordinary.tokens))
    assert torch.equal(values.sort(dim=0).values, ordinary.target[kept].sort(dim=0).values)
    assert [column.array.name for column in seen.split("train").read_columns] == ["target"]
