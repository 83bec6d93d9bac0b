"""JSON and safetensors files from elsewhere."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.errors import DamagedError, UsageError
from transcoder.formats.files import safe
from transcoder.formats.files.safe import read_json, read_tensors


def test_only_the_tensors_that_are_asked_for(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2), "b": torch.zeros(1), "c": torch.zeros(1)}, tmp_path / "x")
    assert read_tensors(tmp_path / "x", names={"a"}, optional=frozenset({"b", "d"})).keys() == {"a", "b"}
    with pytest.raises(DamagedError, match="no tensor e"):
        read_tensors(tmp_path / "x", names={"e"})


def test_json_is_an_object_of_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_text('{"a": 1}')
    assert read_json(tmp_path / "x") == {"a": 1}
    monkeypatch.setattr(safe, "JSON_LIMIT_BYTES", 4)
    with pytest.raises(DamagedError, match="at most 4"):
        read_json(tmp_path / "x")
    (tmp_path / "x").write_text("[1]")
    with pytest.raises(DamagedError, match="not list"):
        read_json(tmp_path / "x")
    with pytest.raises(UsageError):
        read_json(tmp_path / "nothing")
