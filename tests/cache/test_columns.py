"""One array in memory: files are mapped and checked as they are needed, compressed chunks unpacked and released."""

import numpy as np
import pytest

from cache.reader import CacheReader
from cache.storage.columns import Column, UnpackedColumn
from common.errors import DamagedError


def column_of(path, name="source"):
    return CacheReader.open(path).split("train").columns[name]


def test_only_the_chunks_that_are_needed_are_checked(cache, flip):
    flip(cache / "rows.zarr" / "train" / "source" / "c.0.0", bit=8 * 130)  # in the second chunk of the first file
    column = column_of(cache)
    assert type(column) is Column
    column.need(np.array([0, 2, 3]))
    with pytest.raises(DamagedError, match="Chunk 1 of a shard") as caught:
        column.need(np.array([1]))
    assert caught.value.where == str(cache / "rows.zarr" / "train" / "source" / "c.0.0")


def test_reading_ahead_checks_all_and_stops_when_told(cache, flip):
    chunks = np.arange(12)
    column_of(cache).read_through(chunks, stopped=lambda: False)
    flip(cache / "rows.zarr" / "train" / "source" / "c.1.0", bit=3)
    with pytest.raises(DamagedError):
        column_of(cache).read_through(chunks, stopped=lambda: False)
    column_of(cache).read_through(chunks, stopped=lambda: True)


def test_a_file_that_was_removed_is_named_even_after_it_was_read(cache):
    column = column_of(cache)
    column.need_all()
    (cache / "rows.zarr" / "train" / "source" / "c.2.0").unlink()
    opened_again = column_of(cache)
    with pytest.raises(DamagedError, match="missing"):
        opened_again.need_all()


def test_compressed_chunks_are_unpacked_and_released_within_the_limit(make_toy, whole_cache, tmp_path):
    make_toy(codec="zstd").write(tmp_path)
    reader = CacheReader.open(tmp_path)
    column = reader.split("train").columns["source"]
    assert isinstance(column, UnpackedColumn)
    plain = column_of(whole_cache)
    plain.need_all()
    with column.using(np.arange(3)):
        assert (column.values[:12] == plain.values[:12]).all()
    reader._lru._limit_bytes = column.array.chunk_bytes
    column.need(np.arange(5))
    assert column._checked.sum() <= 1
    column.need_all()
    assert (column.values[48:50] == plain.values[48:50]).all() or column._checked.sum() <= 1


def test_a_damaged_compressed_chunk_is_named(make_toy, tmp_path, flip):
    make_toy(codec="zstd").write(tmp_path)
    path = tmp_path / "rows.zarr" / "train" / "source" / "c.0.0"
    flip(path, bit=8 * 20)
    with pytest.raises(DamagedError) as caught:
        column_of(tmp_path).need_all()
    assert caught.value.where == str(path)
