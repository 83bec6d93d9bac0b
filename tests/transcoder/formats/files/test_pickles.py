"""A pickle gives tensors or is refused; no function that it names is called."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from common.errors import DamagedError, MismatchError, UsageError
from transcoder.formats.files.pickles import Settings, read_pickle, read_tensors_of_pickle


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def test_tensors_by_name(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3), "b": torch.zeros(2)}, tmp_path / "x.pt")
    found = read_tensors_of_pickle(tmp_path / "x.pt", names={"a"}, optional=frozenset({"b", "c"}))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"a": [1, 1, 1], "b": [0, 0]}


def test_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    torch.save({"a": torch.ones(1), "b": Evil(trace)}, tmp_path / "zip.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil(trace)))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    for name in ("zip.pt", "raw.pt", "module.pt"):
        with pytest.raises(MismatchError, match="more than tensors"):
            read_pickle(tmp_path / name)
    assert not trace.exists()


def test_an_object_of_an_unknown_class_has_attributes_and_no_code(tmp_path: Path) -> None:
    from types import SimpleNamespace

    torch.save({"cfg": SimpleNamespace(layer=8)}, tmp_path / "x.pt")
    with pytest.raises(MismatchError, match="SimpleNamespace"):
        read_pickle(tmp_path / "x.pt")
    found = read_pickle(tmp_path / "x.pt", stand_ins=("types.SimpleNamespace",))["cfg"]
    assert isinstance(found, Settings)
    assert vars(found) == {"layer": 8}


@pytest.mark.parametrize("cut", [0, 1, 40, 200, -1])
def test_any_damage_is_a_typed_error(tmp_path: Path, cut: int) -> None:
    torch.save({"a": torch.ones(300)}, tmp_path / "x.pt")
    sound = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(sound[:cut])
    with pytest.raises((DamagedError, MismatchError)):
        read_tensors_of_pickle(tmp_path / "x.pt", names={"a"})


def test_other_contents_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_pickle(tmp_path / "nothing.pt")
    cases = {
        "not a plain tensor": {"a": 3},
        "also has b": {"a": torch.ones(1), "b": torch.ones(1)},
        "no tensor a": {},
        "expected, not list": [torch.ones(1)],
    }
    for told, value in cases.items():
        torch.save(value, tmp_path / "x.pt")
        with pytest.raises((DamagedError, MismatchError), match=told):
            read_tensors_of_pickle(tmp_path / "x.pt", names={"a"})
    torch.save({"a": torch.ones(10_000)}, tmp_path / "x.pt")
    with pytest.raises(MismatchError, match="at most"):
        read_tensors_of_pickle(tmp_path / "x.pt", names={"a"}, limit_bytes=10_000)
