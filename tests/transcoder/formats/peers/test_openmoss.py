"""OpenMOSS's files are known, and refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.errors import MismatchError
from transcoder.formats.foreign import Wanted, read_foreign
from transcoder.formats.peers.openmoss import find_openmoss

CONFIG = {"hook_point_in": "blocks.8.hook_resid_post", "norm_activation": "dataset-wise", "act_fn": "jumprelu"}


@pytest.mark.parametrize(
    ("config", "weights", "named"),
    [
        ("config.json", "sae_weights.safetensors", "."),
        ("config.json", "sae_weights.safetensors", "sae_weights.safetensors"),
        ("hyperparams.json", "checkpoints/final.safetensors", "."),
        ("hyperparams.json", "checkpoints/final.safetensors", "checkpoints/final.safetensors"),
    ],
)
def test_it_is_refused_by_name(tmp_path: Path, config: str, weights: str, named: str) -> None:
    (tmp_path / weights).parent.mkdir(exist_ok=True)
    save_file({"W_E": torch.ones(4, 8)}, tmp_path / weights)
    (tmp_path / config).write_text(json.dumps(CONFIG))
    with pytest.raises(MismatchError, match="OpenMOSS") as raised:
        read_foreign(tmp_path / named, Wanted(layer=8))
    assert "SAELens" in raised.value.remedy


@pytest.mark.parametrize("text", ['{"architecture": "topk"}', "[]", "no json"])
def test_another_configuration_is_left_to_the_others(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert find_openmoss(tmp_path, Wanted(layer=8)) is None
    assert find_openmoss(tmp_path / "nothing", Wanted(layer=8)) is None
