import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.config import CacheSettings
from cache.format import statistics
from cache.format.statistics import measure, merge
from cache.reader import CacheReader
from cache.writer import CacheWriter


def five_lines(x, stored):
    mean = stored.mean(axis=0)
    spread = ((stored - mean) ** 2).sum(axis=0)
    norms = np.sqrt((stored**2).sum(axis=1))
    floor = ((x - stored) ** 2).sum() / spread.sum()
    return mean, spread, norms, floor


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    path = tmp_path_factory.mktemp("cache")
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 10, 1, 1, 100]) + 40
    tokens = np.arange(300, dtype=np.int32) % 7
    options = CacheSettings(chunk_rows=8, shard_rows=16, segment_rows=32)
    sizes = {"d_source": 5, "d_target": 5, "train_rows": 300, "held_out_rows": 0}
    with CacheWriter(path, identity={}, settings=options, special_ids=[3, 6], arrays={}, **sizes) as writer:
        number = np.arange(300)
        writer.append(x, -x, tokens, number, number.astype(np.int32), held_out=False, cursor=0)
    return CacheReader.open(path), x.double().numpy()[(tokens != 3) & (tokens != 6)]


def test_statistics_are_those_of_the_stored_rows_without_special_tokens(example):
    reader, x = example
    stored = torch.from_numpy(x).to(torch.bfloat16).double().numpy()
    mean, spread, norms, floor = five_lines(x, stored)
    found = reader.statistics.source
    assert found.rows == len(x)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(found.spread, spread, rtol=1e-12)
    np.testing.assert_allclose(found.variance_sum, spread.sum() / len(x), rtol=1e-12)
    np.testing.assert_allclose(found.second_moment, (stored**2).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.storage_floor, floor, rtol=1e-9)
    np.testing.assert_allclose(found.largest_norms, np.sort(norms)[::-1][:8], rtol=1e-13)
    np.testing.assert_allclose(reader.statistics.target.mean, -mean, rtol=1e-13)
    assert found.norm_counts.sum() == len(x)


def test_the_rows_of_largest_norm_are_named(example):
    reader, _ = example
    found = reader.statistics.source
    rows = reader.split("train").rows(found.largest_rows).source.double()
    np.testing.assert_allclose(rows.norm(dim=1).numpy(), found.largest_norms, rtol=1e-13)


def test_sums_of_small_blocks_are_those_of_the_definition(monkeypatch):
    monkeypatch.setattr(statistics, "_BLOCK_VALUES", 20)  # four rows of width 5
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 10, 1, 1, 100]) + 40
    stored = x.bfloat16().double().numpy()
    kept = np.arange(300) % 7 != 3
    mean, spread, norms, _ = five_lines(stored[kept], stored[kept])
    found = measure(x.bfloat16(), kept=kept, first=1000, error=np.ones(300))
    np.testing.assert_allclose(found.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(found.spread, spread, rtol=1e-11)
    np.testing.assert_allclose(found.largest_norms, np.sort(norms)[::-1][:8], rtol=1e-13)
    assert found.largest_rows[0] == 1000 + np.flatnonzero(kept)[norms.argmax()]
    assert (found.rows, found.norm_counts.sum(), found.storage_error) == (kept.sum(), kept.sum(), kept.sum())


def test_no_bit_depends_on_how_many_threads_add_up(monkeypatch):
    values = np.random.default_rng(0).normal(3, 2, (5000, 96)).astype(np.float32)
    threads = torch.get_num_threads()
    found = []
    try:
        for torch_threads, own in ((1, 1), (2, 1), (2, 3)):
            torch.set_num_threads(torch_threads)
            monkeypatch.setattr(statistics, "_THREADS", own)
            found.append(measured(values, 0).pack())
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


if torch.cuda.is_available():

    @pytest.mark.gpu
    @pytest.mark.parametrize("rows_device", ["cpu", "cuda"])
    def test_statistics_of_a_gpu_are_those_of_the_cpu_whichever_device_has_the_rows(rows_device):
        rows = (torch.randn(70_000, 768, generator=torch.Generator().manual_seed(0)) * 3 + 1).bfloat16()
        given = {"kept": np.arange(len(rows)) % 5 != 0, "first": 0, "error": np.ones(len(rows))}
        here = measure(rows, **given)
        there = [measure(rows.to(name), device=torch.device("cuda"), **given).pack() for name in (rows_device, "cuda")]
        assert np.array_equal(*there)
        np.testing.assert_allclose(there[0], here.pack(), rtol=1e-12)


def measured(values, first):
    ones = np.ones(len(values))
    return measure(torch.from_numpy(values), kept=ones > 0, first=first, error=ones)


@given(rows=st.integers(1, 40), cut=st.integers(0, 40), seed=st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_merging_gives_the_statistics_of_all_rows(rows, cut, seed):
    values = np.random.default_rng(seed).normal(3, 2, (rows, 3)).astype(np.float32)
    at_once, merged = measured(values, 0), merge(measured(values[:cut], 0), measured(values[cut:], cut))
    assert merged.rows == at_once.rows == rows
    np.testing.assert_allclose(merged.mean, at_once.mean, rtol=1e-10)
    np.testing.assert_allclose(merged.spread, at_once.spread, rtol=1e-9, atol=1e-9)
    assert merged.norm_counts.tolist() == at_once.norm_counts.tolist()
    assert merged.largest_rows.tolist() == at_once.largest_rows.tolist()
    assert merged.storage_error == pytest.approx(rows)
