"""Hostile .npz, .safetensors and .json files give a typed error for any bytes."""

import contextlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from common.errors import DamagedError, NestcoderError, UsageError
from transcoder.formats.files.npz import read_npz
from transcoder.formats.files.safe import read_json, read_tensors

GOOD = {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(5)}


def packed(arrays: dict[str, np.ndarray], *, compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def header(shape: str, *, descr: str = "'<f4'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize("compressed", [True, False])
def test_good_arrays_are_read_as_float32(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "good.npz"
    path.write_bytes(packed(GOOD, compressed=compressed))
    found = read_npz(path, ("a", "b"))
    assert found["b"].dtype == torch.float32
    np.testing.assert_array_equal(found["a"].numpy(), GOOD["a"])


def pickled() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"x": 1}], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (packed(GOOD | {"a": np.arange(3)}), "float type"),
        (packed(GOOD | {"a": np.array([np.nan], dtype=np.float32)}), "NaN"),
        (packed({"b": GOOD["b"]}), "no array a"),
        (zipped({"a.npy": pickled(), "b.npy": header("(0,)")}), "float type"),
        (zipped({"a.npy": header("(1000000000000,)"), "b.npy": header("(0,)")}), "but its shape"),
        (zipped({"a.npy": header("(-4,)") + bytes(16), "b.npy": header("(0,)")}), "not"),
        (zipped({"a.npy": header("(4,)", descr="'|O'") + pickle.dumps([1]), "b.npy": b""}), "float type"),
        (
            zipped({"a.npy": header("(8000000,)") + bytes(32_000_000), "b.npy": header("(0,)")}),
            "that is not a dictionary",
        ),
        (b"", "Not a readable"),
        (packed(GOOD)[:300], "Not a readable"),
        (b"\x93NUMPY", "Not a readable"),
        (pickle.dumps({"a": 1}), "Not a readable"),
    ],
)
def test_hostile_archives_are_refused_in_one_sentence(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=told):
        read_npz(path, ("a", "b"))


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header("(0,)"))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.npy", header("(0,)"))
    with pytest.raises(DamagedError, match="the same name"):
        read_npz(path, ("a",))


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    for read in (lambda path: read_npz(path, ("a",)), read_json, lambda path: read_tensors(path, names={"a"})):
        with pytest.raises(UsageError):
            read(tmp_path / "nothing")
        with pytest.raises(UsageError):
            read(tmp_path)


READERS: dict[str, tuple[Callable[[Path], object], bytes]] = {
    "npz": (lambda path: read_npz(path, ("a", "b")), packed(GOOD)),
    "compressed": (lambda path: read_npz(path, ("a", "b")), packed(GOOD, compressed=True)),
    "safetensors": (lambda path: read_tensors(path, names={"a"}), save({"a": torch.ones(3, 4)})),
    "json": (read_json, json.dumps({"a": [1, 2, {"b": None}]}).encode()),
}


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mutation=st.data())
def test_any_mutation_is_read_or_refused(tmp_path: Path, kind: str, mutation: st.DataObject) -> None:
    read, good = READERS[kind]
    data = bytearray(good)
    for _ in range(mutation.draw(st.integers(1, 4))):
        offset = mutation.draw(st.integers(0, len(data) - 1))
        data[offset] = mutation.draw(st.integers(0, 255))
    if mutation.draw(st.booleans()):
        del data[mutation.draw(st.integers(0, len(data))) :]
    path = tmp_path / "file"
    path.write_bytes(bytes(data))
    with contextlib.suppress(NestcoderError):
        read(path)


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused(tmp_path: Path, kind: str, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with contextlib.suppress(NestcoderError):
        READERS[kind][0](path)
