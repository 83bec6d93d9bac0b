"""Every name that ``train.kind`` accepts is a kind, and a run trains the one that its settings name."""

from typing import get_args

import pytest

from train.config import TrainSettings
from train.kinds.cross_layer import CrossLayer
from train.kinds.kind import Kind
from train.kinds.registry import KINDS
from train.kinds.single import Single


def test_the_names_are_those_of_the_setting() -> None:
    assert set(get_args(TrainSettings.model_fields["kind"].annotation)) == KINDS.keys()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_has_the_interface_of_a_kind(name: str) -> None:
    assert issubclass(KINDS[name], Kind)
    assert not KINDS[name].__abstractmethods__


def test_an_autoencoder_is_trained_like_a_transcoder() -> None:
    assert KINDS["transcoder"] is KINDS["sae"] is Single
    assert KINDS["cross-layer"] is CrossLayer
