"""Arrays on disk with a seal: they are read back as they were written, or refused."""

from pathlib import Path

import pytest
import torch

from common.errors import DamagedError, MismatchError
from common.sealed.tensors import FileSeal, check_arrays, read_tensors, write_tensors

ARRAYS = {"W": torch.arange(6, dtype=torch.float32).reshape(2, 3), "count": torch.tensor([1, 2**40])}


def test_arrays_come_back_as_they_were(tmp_path: Path) -> None:
    seal = write_tensors(tmp_path / "a.safetensors", ARRAYS)
    found = read_tensors(tmp_path / "a.safetensors", seal)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert torch.equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    seal = write_tensors(path, ARRAYS)
    data = path.read_bytes()
    for index in range(len(data)):
        path.write_bytes(data[:index] + bytes([data[index] ^ 4]) + data[index + 1 :])
        with pytest.raises(DamagedError):
            read_tensors(path, seal)
    path.write_bytes(data[:-1])
    with pytest.raises(DamagedError, match="bytes"):
        read_tensors(path, seal)
    path.unlink()
    with pytest.raises(DamagedError, match="missing"):
        read_tensors(path, seal)


def test_a_seal_is_read_back_and_anything_else_is_refused() -> None:
    seal = FileSeal(3, "ab")
    document = {"bytes": 3, "xxh3_128": "ab"}
    assert FileSeal.parse(document, location="here") == seal
    for wrong in (None, {}, {"bytes": "3", "xxh3_128": "ab"}):
        with pytest.raises(DamagedError):
            FileSeal.parse(wrong, location="here")


def test_arrays_of_another_shape_or_not_finite_are_refused() -> None:
    shapes = {"W": (2, 3), "count": (2,)}
    check_arrays(ARRAYS, shapes, location="here")
    with pytest.raises(MismatchError, match=r"W has shape"):
        check_arrays(ARRAYS, shapes | {"W": (3, 2)}, location="here")
    with pytest.raises(MismatchError, match="more"):
        check_arrays(ARRAYS, shapes | {"more": (1,)}, location="here")
    with pytest.raises(DamagedError, match="NaN"):
        check_arrays(ARRAYS | {"W": torch.full((2, 3), float("nan"))}, shapes, location="here")
