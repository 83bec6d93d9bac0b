"""circuit-tracer's form of a cross-layer transcoder: it is read back as it was written, for any layers and window."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from common.errors import DamagedError, MismatchError, UsageError
from transcoder.cross_layer import CrossLayerTranscoder, Reach
from transcoder.formats.about import About
from transcoder.formats.peers.circuit_tracer_clt import (
    find_circuit_tracer_clt,
    read_circuit_tracer_clt,
    write_circuit_tracer_clt,
)
from transcoder.rules.threshold import JumpReLU
from transcoder.transcoder import Transcoder, random_arrays

WIDTH, DICT_SIZE, MODEL_LAYERS = 5, 16, 6


def about(layer: int) -> About:
    return About(
        model="tiny",
        layer=layer,
        source_site="ln2_normalized",
        target_site="mlp_out",
        layers_of_model=MODEL_LAYERS,
        record={"prefixes": [4, DICT_SIZE]},
    )


def make(layers: tuple[int, ...], window: int) -> CrossLayerTranscoder:
    reach = Reach(len(layers), window, WIDTH)
    pieces: list[Transcoder] = []
    for number in range(len(layers)):
        arrays = random_arrays(WIDTH, reach.wide(number), dict_size=DICT_SIZE, seed=number)
        arrays["b_dec"][:WIDTH] = torch.randn(WIDTH, generator=torch.Generator().manual_seed(number))
        rule = JumpReLU(torch.linspace(0.1, 1, DICT_SIZE))
        pieces.append(Transcoder(**arrays, rule=rule, prefixes=(4, DICT_SIZE), source_view="ln2_normalized"))
    return CrossLayerTranscoder(pieces, layers=layers, window=window)


@given(layers=st.sets(st.integers(0, MODEL_LAYERS - 1), min_size=1), window=st.integers(0, MODEL_LAYERS))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, layers: set[int], window: int) -> None:
    folder = tmp_path_factory.mktemp("clt") / "circuit_tracer"
    made = make(tuple(sorted(layers)), min(window, len(layers) - 1))
    silent = write_circuit_tracer_clt(folder, made, about(min(layers)))
    assert silent == sorted(set(range(MODEL_LAYERS)) - layers)
    read = read_circuit_tracer_clt(folder)
    assert (read.layers, read.reach.window, read.prefixes) == (made.layers, made.reach.window, made.prefixes)
    assert read.config["source_site"] == "ln2_normalized"
    sources = list(torch.randn(len(layers), 7, WIDTH, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(read.reconstructions(sources), made.reconstructions(sources))


def test_arrays_are_named_and_shaped_as_the_loader_of_circuit_tracer_reads_them(tmp_path: Path) -> None:
    """Block t of W_dec_s is what layer s writes to layer s + t of the model."""
    made = make((1, 4), 1)
    write_circuit_tracer_clt(tmp_path, made, about(1))
    encoder = load_file(tmp_path / "W_enc_4.safetensors")
    assert torch.equal(encoder["W_enc_4"], made.piece(1).W_enc)
    assert torch.equal(encoder["b_dec_4"], made.b_dec(1))
    assert torch.equal(encoder["threshold_4"], torch.linspace(0.1, 1, DICT_SIZE))
    decoder = load_file(tmp_path / "W_dec_1.safetensors")["W_dec_1"]
    assert decoder.shape == (DICT_SIZE, MODEL_LAYERS - 1, WIDTH)
    assert torch.equal(decoder[:, 3], made.piece(0).W_dec[:, WIDTH:])
    assert not decoder[:, 1:3].any()
    assert "feature_input_hook: ln2.hook_normalized" in (tmp_path / "config.yaml").read_text()
    assert find_circuit_tracer_clt(tmp_path / "W_dec_1.safetensors") == tmp_path
    assert find_circuit_tracer_clt(tmp_path / "elsewhere") is None


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_circuit_tracer_clt(tmp_path, make((1, 4), 1), about(1))
    config = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("ln2.hook_normalized", "hook_mlp_in"))
    with pytest.raises(UsageError, match="hook_mlp_in"):
        read_circuit_tracer_clt(tmp_path)
    assert read_circuit_tracer_clt(tmp_path, source_view="mlp_in").config["source_site"] == "mlp_in"
    decoder = load_file(tmp_path / "W_dec_1.safetensors")["W_dec_1"]
    decoder[:, 1] = 1
    save_file({"W_dec_1": decoder}, tmp_path / "W_dec_1.safetensors")
    with pytest.raises(MismatchError, match="Features of layer 1 write to layer 2"):
        read_circuit_tracer_clt(tmp_path, source_view="mlp_in")
    save_file({"W_dec_1": decoder[:, :2].contiguous()}, tmp_path / "W_dec_1.safetensors")
    with pytest.raises(DamagedError, match="W_dec"):
        read_circuit_tracer_clt(tmp_path, source_view="mlp_in")
    (tmp_path / "W_enc_2.safetensors").unlink()
    with pytest.raises(DamagedError, match="layer 2 are missing"):
        read_circuit_tracer_clt(tmp_path)
    (tmp_path / "config.yaml").unlink()
