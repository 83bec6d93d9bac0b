"""Gemma Scope 2's folders: the name of the Hugging Face module gives the site, and the affine term is a skip."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from common.errors import MismatchError, UsageError
from transcoder.formats.peers.gemma_scope_2 import find_gemma_scope_2, read_gemma_scope_2
from transcoder.formats.wanted import Wanted
from transcoder.rules.threshold import JumpReLU
from transcoder.transcoder import Transcoder

WANTED = Wanted(layer=8, d_source=6, d_target=6)
CONFIG = {
    "architecture": "jump_relu",
    "model_name": "gemma-3-4b-pt",
    "hf_hook_point_in": "model.layers.8.pre_feedforward_layernorm.output",
    "hf_hook_point_out": "model.layers.8.post_feedforward_layernorm.output",
}
Make = Callable[..., Transcoder]


@pytest.fixture
def trained(make_transcoder: Make) -> Transcoder:
    return make_transcoder(JumpReLU(torch.linspace(0, 0.5, 24)), skip=True)


def write(folder: Path, trained: Transcoder, config: dict[str, Any] | None = CONFIG) -> Path:
    folder.mkdir(parents=True)
    tensors = {name.lower(): array.detach().clone() for name, array in trained.arrays().items()}
    tensors["w_enc"] = tensors["w_enc"].T.contiguous()
    tensors["affine_skip_connection"] = tensors.pop("w_skip")
    save_file(tensors | {"threshold": trained.rule.arrays()["threshold"]}, folder / "params.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_gain_is_included_and_the_affine_term_added(
    tmp_path: Path, trained: Transcoder, source: torch.Tensor
) -> None:
    folder = write(tmp_path / "x", trained)
    assert find_gemma_scope_2(folder / "params.safetensors", WANTED) == folder
    read = read_gemma_scope_2(folder, WANTED)
    assert read.source_view == "mlp_in"
    assert read.config["model"] == "gemma-3-4b-pt"
    torch.testing.assert_close(read(source), trained(source))


@pytest.mark.parametrize(
    ("folder", "sites"),
    [
        ("transcoder_all/layer_8_width_16k_l0_small_affine", ["mlp_in", "mlp_out"]),
        ("resid_post/layer_8_width_16k_l0_small", ["resid_post", "resid_post"]),
    ],
)
def test_a_folder_without_config_is_known_by_its_path(
    tmp_path: Path, trained: Transcoder, folder: str, sites: list[str]
) -> None:
    read = read_gemma_scope_2(write(tmp_path / folder, trained, None), WANTED)
    assert [read.config["source_site"], read.config["target_site"]] == sites


def test_what_cannot_be_read_is_refused(tmp_path: Path, trained: Transcoder) -> None:
    with pytest.raises(MismatchError, match="'topk'"):
        read_gemma_scope_2(write(tmp_path / "a", trained, CONFIG | {"architecture": "topk"}), WANTED)
    attention = {"hf_hook_point_in": "model.layers.8.self_attn.o_proj.input"}
    with pytest.raises(MismatchError, match="o_proj"):
        read_gemma_scope_2(write(tmp_path / "b", trained, CONFIG | attention), WANTED)
    with pytest.raises(UsageError, match="No file or folder name tells"):
        read_gemma_scope_2(write(tmp_path / "c", trained, None), WANTED)
    with pytest.raises(MismatchError, match="layer 8"):
        read_gemma_scope_2(write(tmp_path / "d", trained), Wanted(layer=9))
