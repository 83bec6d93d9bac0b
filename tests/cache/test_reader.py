"""Rows as they were written: any slice or order of them, their views, and what is refused."""

import numpy as np
import pytest
import torch

from cache.reader import CacheReader, is_complete
from common.errors import MismatchError, UsageError


def held_out(stream, count):
    """The held-out rows of the text, in its order."""
    text = stream.Text(dtype=torch.float32)
    return stream.expected(text, count, held_out=True)


@pytest.fixture(scope="module")
def reader(stream, tmp_path_factory):
    path = tmp_path_factory.mktemp("reader")
    stream.write(path, dtype="float32", text=stream.Text(dtype=torch.float32))
    return CacheReader.open(path)


def test_held_out_rows_are_those_of_the_text_in_order(reader, stream):
    split = reader.split("held_out")
    source, target, tokens, document, position = held_out(stream, len(split))
    rows = split.rows(slice(None))
    np.testing.assert_array_equal(rows.source.numpy(), source)
    np.testing.assert_array_equal(rows.target.numpy(), target)
    for found, wanted in ((rows.tokens, tokens), (rows.document, document), (rows.position, position)):
        np.testing.assert_array_equal(found, wanted)


def test_any_rows_in_any_order(reader):
    split = reader.split("train")
    everything = split.rows(slice(None))
    index = np.random.default_rng(0).integers(0, len(split), 70)
    for which in (index, slice(3, 40, 7), slice(-5, None), slice(10, 10)):
        rows = split.rows(which)
        places = np.arange(len(split))[which] if isinstance(which, slice) else which
        assert torch.equal(rows.source, everything.source[torch.from_numpy(places)])
        assert (rows.tokens == everything.tokens[places]).all()
    for outside in (len(split), -1):
        with pytest.raises(UsageError, match=f"between 0 and {len(split) - 1}"):
            split.gather("source", np.array([0, outside]))


def test_a_view_undoes_the_norm(reader):
    split = reader.split("train")
    gain, bias = (torch.from_numpy(reader.arrays[name]) for name in ("gain", "bias"))
    plain = split.rows(slice(0, 9)).source
    seen = split.rows(slice(0, 9), view="ln2_normalized").source
    torch.testing.assert_close(seen * gain + bias, plain)


def test_statistics_are_those_of_ordinary_rows(reader):
    split = reader.split("train")
    rows = split.rows(slice(None))
    ordinary = split.is_ordinary(rows.tokens)
    assert (ordinary == (rows.tokens != 0)).all()
    expected = rows.source.double().numpy()[ordinary]
    np.testing.assert_allclose(split.statistics.source.mean, expected.mean(axis=0), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(split.statistics.source.variance, expected.var(axis=0), rtol=1e-6)


def test_a_required_identity_is_compared(reader):
    CacheReader.open(reader.path, expect={"layer": 3, "model": "toy"})
    with pytest.raises(MismatchError, match="model is 'toy', not 'other'"):
        CacheReader.open(reader.path, expect={"model": "other"})


def test_an_unfinished_cache_is_refused_and_not_complete(make_toy, tmp_path):
    make_toy().write(tmp_path, stop=8)
    with pytest.raises(UsageError, match=r"not finished: it has \d of 7 segments"):
        CacheReader.open(tmp_path)
    assert not is_complete(tmp_path)
    make_toy().write(tmp_path)
    assert is_complete(tmp_path)
    (tmp_path / "rows.zarr" / "train" / "source" / "c.0.0").unlink()
    assert not is_complete(tmp_path)
    assert not is_complete(tmp_path / "nothing")
