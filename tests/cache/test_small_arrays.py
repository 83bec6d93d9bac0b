"""Small arrays of a cache: read by name without its rows, told apart by prefix, and refused when they are damaged."""

import numpy as np
import pytest

from cache.format.manifest import read_manifest
from cache.small_arrays import SmallArrays
from common.errors import DamagedError


@pytest.fixture
def arrays(toy, tmp_path) -> SmallArrays:
    toy.writer(tmp_path / "cache").close()
    return SmallArrays(tmp_path / "cache", read_manifest(tmp_path / "cache"), "cpu")


def test_arrays_are_those_that_were_given(arrays, toy):
    assert list(arrays.arrays) == ["gain"]
    assert np.array_equal(arrays.arrays["gain"], np.linspace(0.5, 2, toy.d_source, dtype=np.float32))
    assert not arrays.has_mlp
    assert not arrays.has_unembedding
    assert arrays.identity["model"] == "toy"


def test_a_changed_array_is_damage(arrays):
    (chunk,) = (arrays.path / "rows.zarr/parameters/gain").glob("c*")
    chunk.write_bytes(b"\1" * chunk.stat().st_size)
    with pytest.raises(DamagedError, match="does not match its checksum"):
        arrays.arrays  # noqa: B018 - read when first asked for
