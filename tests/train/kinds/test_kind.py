"""What all kinds share: both states have the interface of a run, and a toy kind trains through the same run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.training import train
from train.config import TrainSettings
from train.kinds.kind import RunState
from train.kinds.registry import KINDS
from train.kinds.single import Single
from train.state import State


class Halved(Single):
    """A transcoder that is saved with another name, and only the first half of each prefix."""

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"toy": True}

    def save(self, state: State, folder: Path, *, config: Mapping[str, Any]) -> dict[str, Any]:
        assert isinstance(state, RunState)
        return super().save(state, folder, config=config)


def test_a_toy_kind_trains_through_the_same_run(
    small_cache: Path, quick: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "transcoder", Halved)  # its line in the registry
    config = train(small_cache, tmp_path / "run", quick)
    assert config["toy"] is True


def test_a_state_knows_its_step() -> None:
    assert not isinstance(torch.zeros(1), RunState)
