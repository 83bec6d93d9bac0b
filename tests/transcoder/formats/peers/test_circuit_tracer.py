"""circuit-tracer's sets: every layer is there, and layers that were not trained never fire."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import DamagedError, MismatchError, UsageError
from transcoder.formats.about import About
from transcoder.formats.peers.circuit_tracer import (
    find_circuit_tracer,
    frame_circuit_tracer,
    read_circuit_tracer,
    write_circuit_tracer,
)
from transcoder.formats.wanted import Wanted
from transcoder.rules.threshold import JumpReLU
from transcoder.transcoder import Transcoder

WANTED = Wanted(layer=8, d_source=6, d_target=6)
Make = Callable[..., Transcoder]


def their_forward(file: Path, source: torch.Tensor) -> torch.Tensor:
    """What circuit-tracer computes from such a file, in float64."""
    stored = {name: tensor.double() for name, tensor in load_file(file).items()}
    pre = source.double() @ stored["W_enc"].T + stored["b_enc"]
    acts = pre * (pre > stored["activation_function.threshold"])
    skip = source.double() @ stored["W_skip"].T if "W_skip" in stored else 0
    return acts @ stored["W_dec"] + stored["b_dec"] + skip


@pytest.mark.parametrize("skip", [False, True])
def test_a_set_is_read_back_as_it_was_written(
    tmp_path: Path, make_transcoder: Make, about: About, source: torch.Tensor, skip: bool
) -> None:
    trained = make_transcoder(JumpReLU(torch.linspace(0, 0.5, 24)), skip=skip)
    about = replace(about, source_site="ln2_normalized")
    silent = frame_circuit_tracer(tmp_path, [about], trained)
    write_circuit_tracer(tmp_path, trained, about)
    assert silent == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert (tmp_path / "config.yaml").read_text().splitlines() == [
        "model_name: openai-community/gpt2",
        "model_kind: transcoder_set",
        "feature_input_hook: ln2.hook_normalized",
        "feature_output_hook: hook_mlp_out",
        "scan: nestcoder/gpt2",
        "activation: jumprelu",
    ]
    file = find_circuit_tracer(tmp_path, WANTED)
    assert file == tmp_path / "layer_8.safetensors"
    torch.testing.assert_close(their_forward(file, source), trained(source).double(), atol=1e-5, rtol=1e-5)
    read = read_circuit_tracer(file, WANTED)
    assert read.source_view == "ln2_normalized"
    for name, array in trained.arrays().items():
        assert torch.equal(array, read.arrays()[name]), name
    for layer in silent:
        silent_file = tmp_path / f"layer_{layer}.safetensors"
        stored = load_file(silent_file)
        assert {name: tensor.shape for name, tensor in stored.items()} == {
            name: tensor.shape for name, tensor in load_file(file).items()
        }
        assert not their_forward(silent_file, source).any()
        read = read_circuit_tracer(silent_file, replace(WANTED, layer=layer))
        assert not (read.sparse_code(source).values > 0).any()


def test_a_top_k_of_the_tool_is_read(tmp_path: Path, make_transcoder: Make, about: About, source: torch.Tensor) -> None:
    trained = make_transcoder(JumpReLU(torch.zeros(24)))
    frame_circuit_tracer(tmp_path, [about], trained)
    write_circuit_tracer(tmp_path, trained, about)
    config = tmp_path / "config.yaml"
    text = config.read_text().replace("jumprelu", "topk")
    config.write_text(text + "k: 3\n")
    read = read_circuit_tracer(tmp_path / "layer_8.safetensors", WANTED)
    assert read.top_k == 3
    assert (read.encode(source) > 0).sum(dim=1).max() == 3
    config.write_text(text)
    with pytest.raises(DamagedError, match="k is None"):
        read_circuit_tracer(tmp_path / "layer_8.safetensors", WANTED)


def test_another_input_is_refused(tmp_path: Path, make_transcoder: Make, about: About) -> None:
    frame_circuit_tracer(tmp_path, [about], make_transcoder(JumpReLU(torch.zeros(24))))
    config = tmp_path / "config.yaml"
    config.write_text(config.read_text().replace("mlp.hook_in", "attn.hook_z"))
    with pytest.raises(MismatchError, match="hook_z"):
        read_circuit_tracer(tmp_path / "layer_0.safetensors", replace(WANTED, layer=0))
    config.unlink()
    with pytest.raises(UsageError, match="no config"):
        read_circuit_tracer(tmp_path / "layer_0.safetensors", replace(WANTED, layer=0))


def test_the_file_of_an_empty_layer_says_that_it_never_fires(
    tmp_path: Path, make_transcoder: Make, about: About
) -> None:
    from safetensors import safe_open

    frame_circuit_tracer(tmp_path, [about], make_transcoder())
    with safe_open(tmp_path / "layer_0.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["nestcoder"]) == {"never_fires": True}
