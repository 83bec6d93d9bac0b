"""What a training of each kind reads: one cache, one site of it, or several with their rows side by side."""

from pathlib import Path

import pytest

from common.errors import UsageError
from train.config import TrainSettings
from train.kinds.cross_layer import JointUnits
from train.kinds.source import Source


def test_several_caches_are_read_side_by_side(two_layers: dict[int, Path], quick: TrainSettings) -> None:
    caches = list(two_layers.values())
    across = TrainSettings.model_validate(quick.model_dump() | {"kind": "cross-layer"})
    joint = Source.open(caches, across, None, device="cpu")
    assert [reader.path for reader in joint.readers] == caches
    assert joint.reader.split("train").d_source == sum(reader.d_source for reader in joint.readers)
    assert isinstance(joint.units, JointUnits)
    assert joint.units.width == joint.readers[0].d_target


def test_an_autoencoder_reads_one_site_and_a_transcoder_one_cache(
    two_layers: dict[int, Path], quick: TrainSettings
) -> None:
    cache = next(iter(two_layers.values()))
    autoencoder = TrainSettings.model_validate(quick.model_dump() | {"kind": "sae", "side": "target"})
    source = Source.open([cache], autoencoder, None, device="cpu")
    assert source.reader.d_source == source.reader.d_target == source.units.width
    with pytest.raises(UsageError, match="is of one layer"):
        Source.open(list(two_layers.values()), quick, None, device="cpu")
