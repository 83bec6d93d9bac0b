import numpy as np
import torch
import zarr

from cache.format.dtypes import to_array
from cache.format.int8 import quantise, restore
from cache.reader import CacheReader


def outlying(rows, width):
    """Rows as a model's are: some dimensions and some rows a hundred times larger than the others."""
    generator = np.random.default_rng(0)
    x = (
        generator.standard_normal((rows, width))
        * generator.lognormal(0, 1.5, width)
        * generator.lognormal(0, 1, (rows, 1))
    )
    return torch.from_numpy(x).bfloat16()


def test_the_noise_of_8_bits_is_small_in_every_dimension():
    x = outlying(3000, 64)
    found = quantise(to_array(x))
    back = restore(*(torch.from_numpy(array) for array in (found.values, found.scale, found.channel))).double()
    error = (x.double() - back).square()
    assert float(error.sum() / x.double().var(dim=0, correction=0).sum() / len(x)) < 2e-4
    assert float((error.mean(dim=0) / x.double().var(dim=0)).max()) < 2e-3
    np.testing.assert_allclose(found.error, error.sum(dim=1), rtol=1e-6)


def test_zeros_stay_zeros():
    x = outlying(5, 4)
    x[2], x[:, 1] = 0, 0
    found = quantise(to_array(x))
    assert not found.values[2].any()
    assert not found.values[:, 1].any()


def test_a_cache_of_8_bits_gives_the_rows_its_statistics_are_of(stream, tmp_path):
    stream.write(tmp_path, dtype="int8")
    reader = CacheReader.open(tmp_path)
    exact = torch.from_numpy(stream.expected(stream.Text(), 11, held_out=True)[0]).double()
    split = reader.split("held_out")
    rows, kept = split.rows(slice(None)), split.tokens != stream.special
    assert rows.source.dtype == torch.bfloat16
    back = rows.source.double()
    assert float((exact - back).square().sum() / exact.square().sum()) < 2e-4
    np.testing.assert_allclose(split.statistics.source.mean, back[kept].mean(dim=0), rtol=1e-12)
    np.testing.assert_allclose(split.statistics.source.storage_error, (exact - back)[kept].square().sum(), rtol=1e-5)
    store = zarr.open_group(tmp_path / "rows.zarr", mode="r")["held_out"]
    assert store["source"].dtype == np.int8
    formula = store["source"][:].astype(np.float32) * store["source_scale"][:][:, None]
    formula *= store["source_channel"][:][np.arange(11) // 4]
    assert (torch.from_numpy(formula).bfloat16() == rows.source).all()


def test_a_run_that_goes_on_ends_with_the_same_bytes(stream, tree, tmp_path):
    stream.write(tmp_path / "whole", dtype="int8", batch=2)
    for stop in (9, None):
        with stream.open_writer(tmp_path / "broken", dtype="int8") as writer:
            stream.feed(writer, batch=2, stop=stop)
    assert tree(tmp_path / "broken") == tree(tmp_path / "whole")
