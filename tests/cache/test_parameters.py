"""Small arrays: written as zarr reads them, and refused when they are not what a cache writes."""

import json

import numpy as np
import pytest
import zarr

from cache.format.parameters import PARAMETERS, parameter_files, read_parameter
from common.errors import UsageError


@pytest.mark.parametrize("array", [np.linspace(0, 1, 7, dtype=np.float32), np.arange(6).reshape(2, 3), np.zeros(0)])
def test_they_come_back_and_zarr_reads_them_too(tmp_path, array):
    files = parameter_files({"gain": array})
    described = files.pop(f"{PARAMETERS}gain/zarr.json")
    back = read_parameter(described, b"".join(files.values()))
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)
    (tmp_path / "zarr.json").write_bytes(described)
    for name, data in files.items():
        (tmp_path / name.rsplit("/", 1)[1]).write_bytes(data)
    assert np.array_equal(zarr.open_array(tmp_path, mode="r")[:], array)


@pytest.mark.parametrize("name", ["../gain", "zarr.json", "Gain", ""])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(UsageError, match="cannot store an array"):
        parameter_files({name: np.zeros(2)})


def test_a_type_or_shape_that_a_cache_does_not_hold_is_refused():
    for array in (np.zeros(2, bool), np.array(1.0), np.array(["a"])):
        with pytest.raises(UsageError, match="cannot store an array"):
            parameter_files({"gain": array})


@pytest.mark.parametrize("change", [{"shape": [3]}, {"shape": [-1]}, {"shape": [10**12]}, {"data_type": "object"}])
def test_metadata_that_a_cache_does_not_write_is_refused(change):
    files = parameter_files({"gain": np.zeros(2)})
    described = json.loads(files[f"{PARAMETERS}gain/zarr.json"])
    with pytest.raises(ValueError, match=r"array|metadata|shape"):
        read_parameter(json.dumps(described | change).encode(), files[f"{PARAMETERS}gain/c.0"])
