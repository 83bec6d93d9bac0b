import numpy as np
import pytest
import torch

from cache.config import CacheSettings
from cache.loader import Loader
from cache.reader import CacheReader
from cache.storage.buffers import Buffers
from cache.storage.columns import Column
from cache.writer import CacheWriter
from common.errors import DamagedError, UsageError

ROWS = 530


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache")
    settings = CacheSettings(chunk_rows=8, shard_rows=16, segment_rows=64)
    sizes = {"d_source": 3, "d_target": 2, "train_rows": ROWS, "held_out_rows": 0}
    gain = {"gain": np.array([2, 4, 0.5], np.float32), "bias": np.array([1, 0, -1], np.float32)}
    with CacheWriter(path, identity={}, settings=settings, special_ids=[9], arrays=gain, **sizes) as writer:
        number = np.arange(ROWS)
        source = torch.from_numpy(np.stack([number, number % 7, number % 5], axis=1).astype(np.float32))
        columns = ((number % 10).astype(np.int32), number.astype(np.int64), number.astype(np.int32))
        writer.append(source, -source[:, :2], *columns, held_out=False, cursor=0)
    return CacheReader.open(path)


def served(reader, **options):
    with Loader(reader, batch_rows=100, seed=3, **{"epochs": 2} | options) as loader:
        return list(loader)


def documents(batches):
    return np.concatenate([batch.document for batch in batches])


def test_every_row_but_the_masked_comes_once_an_epoch_in_its_own_order(reader):
    batches = served(reader)
    assert [batch.index for batch in batches] == list(range(12))
    first, second = (documents(b for b in batches if b.epoch == epoch) for epoch in (0, 1))
    expected = [row for row in range(ROWS) if row % 10 != 9]
    assert np.sort(first).tolist() == np.sort(second).tolist() == expected
    assert (first != second).any()


def test_source_target_and_columns_of_a_row_are_served_together(reader):
    for batch in served(reader):
        exact = batch.document % 5
        assert (batch.source[:, 2].float().numpy().astype(int) == exact).all()
        assert torch.equal(batch.target, -batch.source[:, :2])
        assert (batch.tokens == batch.document % 10).all()


def test_special_tokens_are_served_when_asked_for(reader):
    assert len(documents(served(reader, mask_special=False))) == 2 * ROWS


@pytest.mark.parametrize("start", [1, 5, 6, 11])
def test_a_loader_that_starts_later_goes_on_exactly(reader, start):
    all_batches, later_batches = served(reader), served(reader, start_batch=start)
    assert [batch.index for batch in later_batches] == list(range(start, 12))
    for expected, batch in zip(all_batches[start:], later_batches, strict=True):
        assert torch.equal(expected.source, batch.source)


@pytest.mark.parametrize("options", [{"threads": 3, "prefetch": 7}, {"prefetch": 1}])
def test_threads_and_prefetching_change_nothing(reader, options):
    for expected, batch in zip(served(reader), served(reader, **options), strict=True):
        assert torch.equal(expected.source, batch.source)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_all_ranks_get_what_one_process_gets(reader, world):
    ranks = [served(reader, rank=rank, world=world) for rank in range(world)]
    for number, batch in enumerate(served(reader)):
        parts = [ranks[rank][number].document for rank in range(world)]
        assert np.concatenate(parts).tolist() == batch.document.tolist()


def test_the_cursor_counts_batches_consumed_not_fetched(reader):
    with Loader(reader, batch_rows=100, seed=3, prefetch=4) as loader:
        for _ in range(3):
            next(loader)
        assert loader.consumed == 3
        assert loader.waited_seconds > 0


def test_the_normalised_view_undoes_gain_and_bias(reader):
    plain, view = served(reader), served(reader, view="ln2_normalized")
    expected = (plain[0].source.float() - torch.tensor([1.0, 0, -1])) / torch.tensor([2, 4, 0.5])
    assert torch.equal(view[0].source, expected)


def test_a_missing_split_and_impossible_sizes_are_refused(reader):
    with pytest.raises(UsageError, match="no held_out rows"):
        Loader(reader, split="held_out", batch_rows=10, seed=0)
    with pytest.raises(UsageError, match="batch_rows=0"):
        Loader(reader, batch_rows=0, seed=0)


def test_rows_that_are_still_in_use_are_never_overwritten(reader):
    with Loader(reader, batch_rows=50, seed=3, epochs=2, prefetch=2) as loader:
        views = []
        for number, batch in enumerate(loader):
            exact = loader.batch(number)
            assert torch.equal(batch.source, exact.source)
            if number % 3 == 0:
                views.append((batch.source[5:9], exact.source[5:9].clone()))
    assert all(torch.equal(kept, exact) for kept, exact in views)


def test_memory_is_used_again_as_soon_as_no_view_of_it_is_left():
    buffers = Buffers(rows=100, pinned=False)
    first = buffers.lend(80, width=3, dtype=torch.bfloat16)
    address, view = first.data_ptr(), first[3:5].float
    del first
    assert buffers.lend(100, width=3, dtype=torch.bfloat16).data_ptr() != address, "a view is still in use"
    del view
    second = buffers.lend(100, width=3, dtype=torch.bfloat16)
    assert second.shape == (100, 3)
    third = buffers.lend(7, width=6, dtype=torch.float32)
    second.zero_()
    third.fill_(1)
    assert not second.any()
    taken = {second.data_ptr(), third.data_ptr()}
    del second, third
    assert {buffers.lend(9, width=3, dtype=torch.float16).data_ptr() for _ in range(4)} & taken


def test_a_pool_is_read_in_the_order_of_the_file_and_the_next_pool_after_it(reader, monkeypatch):
    row_bytes = 2 * (3 + 2)
    monkeypatch.setattr("cache.loader.POOL_BYTES", 20 * 8 * row_bytes)
    seen = []
    read = Column.read_through

    def noted(column, chunks, **options):
        seen.append((column.array.name, chunks.tolist()))
        read(column, chunks, **options)

    monkeypatch.setattr(Column, "read_through", noted)
    with Loader(reader, batch_rows=16, seed=3, epochs=1) as loader:
        loader.batch(0)
        loader.close()
        assert [name for name, _ in seen] == ["source", "target"] * 2
        assert all(chunks == sorted(chunks) for _, chunks in seen)
        order = loader._order(0)
        assert seen[0][1] == sorted(order.chunks_of_pool(0).tolist())
        assert seen[2][1] == sorted(order.chunks_of_pool(1).tolist())
        assert max(len(chunks) for _, chunks in seen) <= 21, "a pool holds no more than it may"


def test_naming_rows_reads_none(reader, monkeypatch):
    monkeypatch.setattr(Column, "need", lambda *_: pytest.fail("rows were read"))
    with Loader(reader, batch_rows=16, seed=3) as loader:
        assert len(loader.rows_of(4, 2)) == 16


def test_damage_is_found_by_the_batch_that_needs_the_rows(tmp_path, make_toy, flip):
    make_toy().write(tmp_path)
    flip(tmp_path / "rows.zarr/train/source/c.1.0", 77)
    loader = Loader(CacheReader.open(tmp_path), batch_rows=8, seed=0)
    with loader, pytest.raises(DamagedError, match=r"c\.1\.0"):
        list(loader)
