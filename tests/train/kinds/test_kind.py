"""What the kinds share: both states are what a run asks of one, and a toy kind trains through the same run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from common.progress import Silent
from train.config import LogSettings, TrainSettings
from train.kinds.kind import RunState
from train.kinds.registry import KINDS
from train.kinds.single import Single
from train.run import train_layer
from train.state import State


class Halved(Single):
    """A transcoder of which only the first half of each prefix is saved with a name of its own."""

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"toy": True}

    def save(self, state: State, folder: Path, *, config: Mapping[str, Any]) -> dict[str, Any]:
        assert isinstance(state, RunState)
        return super().save(state, folder, config=config)


def test_a_toy_kind_trains_through_the_same_run(
    small_cache: Path, quick: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KINDS, "transcoder", Halved)  # its line in the registry
    config = train_layer(
        cache=small_cache,
        out=tmp_path / "run",
        settings=quick,
        device="cpu",
        fresh=False,
        progress=Silent(),
        log=LogSettings(),
    )
    assert config["toy"] is True


def test_a_state_says_how_far_it_is() -> None:
    assert not isinstance(torch.zeros(1), RunState)
