"""Checkpoints of the two earlier programs: what each computes, and what no affine map can compute."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import DamagedError, MismatchError, UsageError
from transcoder.formats.peers.matryoshka import find_matryoshka, read_matryoshka
from transcoder.formats.wanted import Wanted

WANTED = Wanted(layer=8, d_source=6, d_target=5)
TRANSCODER = {
    "source_act_size": 6,
    "target_act_size": "5",
    "dict_size": "24",
    "top_k": 4,
    "prefix_sizes": "[4, 24]",
    "input_unit_norm": "False",
    "model_name": "gemma-2-2b",
    "source_hook_point": "blocks.8.ln2.hook_normalized",
    "target_hook_point": "blocks.8.hook_mlp_out",
}
AUTOENCODER = {
    "act_size": 6,
    "dict_size": 24,
    "top_k": 4,
    "sae_type": "global-matryoshka-topk",
    "group_sizes": "[4, 6, 14]",
    "input_unit_norm": False,
    "dtype": "torch.float32",
    "hook_point": "blocks.8.hook_resid_pre",
    "model_name": "gpt2-small",
}


def tensors(d_target: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (6, 24), "b_enc": (24,), "W_dec": (24, d_target), "b_dec": (d_target,)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return drawn | {"threshold": torch.tensor(0.4)}


def write(folder: Path, config: dict[str, Any], stored: dict[str, torch.Tensor], name: str = "sae.pt") -> Path:
    (folder / name).parent.mkdir(parents=True)
    torch.save(stored, folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["sae.pt", "checkpoints/final.pt"])
def test_a_transcoder_of_the_earlier_program_is_read(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "x", TRANSCODER, tensors(5), name)
    assert find_matryoshka(folder, WANTED) == find_matryoshka(folder / name, WANTED) == folder
    read = read_matryoshka(folder, WANTED)
    assert (read.source_view, read.top_k, read.prefixes) == ("ln2_normalized", 4, (24,))
    assert any("no loss on prefixes" in note for note in read.config["notes"])
    source = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    known = {key: tensor.double() for key, tensor in tensors(5).items()}
    pre = source.double() @ known["W_enc"] + known["b_enc"]
    expected = (pre * (pre > 0.4)) @ known["W_dec"] + known["b_dec"]
    torch.testing.assert_close(read(source).double(), expected, atol=1e-4, rtol=1e-4)


def test_the_b_enc_that_the_program_never_adds_is_left_out(tmp_path: Path) -> None:
    read = read_matryoshka(write(tmp_path / "x", AUTOENCODER, tensors(6)), Wanted(layer=8))
    assert read.prefixes == (4, 10, 24)
    source = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    known = {key: tensor.double() for key, tensor in tensors(6).items()}
    pre = (source.double() - known["b_dec"]) @ known["W_enc"]
    expected = (pre * (pre > 0.4)) @ known["W_dec"] + known["b_dec"]
    torch.testing.assert_close(read(source).double(), expected, atol=1e-4, rtol=1e-4)


def test_vanilla_and_topk(tmp_path: Path) -> None:
    source = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    stored = {key: tensor for key, tensor in tensors(6).items() if key != "threshold"}
    vanilla = read_matryoshka(write(tmp_path / "x", AUTOENCODER | {"sae_type": "vanilla"}, stored), Wanted(layer=8))
    pre = (source - stored["b_dec"]) @ stored["W_enc"] + stored["b_enc"]
    torch.testing.assert_close(vanilla.encode(source), pre.relu(), atol=1e-4, rtol=1e-4)
    topk = read_matryoshka(write(tmp_path / "y", AUTOENCODER | {"sae_type": "topk"}, stored), Wanted(layer=8))
    assert (topk.rule.name, topk.top_k) == ("topk", 4)


def test_jumprelu_stores_logarithms(tmp_path: Path) -> None:
    stored = {key: tensor for key, tensor in tensors(6).items() if key != "threshold"}
    stored["jumprelu.log_threshold"] = torch.linspace(-3, 0, 24)
    read = read_matryoshka(write(tmp_path / "x", AUTOENCODER | {"sae_type": "jumprelu"}, stored), Wanted(layer=8))
    torch.testing.assert_close(read.rule.arrays()["threshold"], torch.linspace(-3, 0, 24).exp())


@pytest.mark.parametrize(
    ("changed", "kind", "told"),
    [
        ({"input_unit_norm": "True"}, MismatchError, "input_unit_norm"),
        ({"input_unit_norm": True}, MismatchError, "input_unit_norm"),
        ({"source_hook_point": "blocks.8.hook_mlp_in"}, UsageError, "hook_mlp_in"),
        ({"dict_size": 25}, DamagedError, "W_enc has shape"),
        ({"top_k": 0}, DamagedError, "k is 0"),
        ({"source_hook_point": None}, MismatchError, "do not say which tensor"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, changed: dict[str, Any], kind: type, told: str) -> None:
    with pytest.raises(kind, match=told):
        read_matryoshka(write(tmp_path / "x", TRANSCODER | changed, tensors(5)), WANTED)


def test_the_user_decides_which_site_an_ambiguous_hook_is(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", TRANSCODER | {"source_hook_point": "blocks.8.hook_mlp_in"}, tensors(5))
    assert read_matryoshka(folder, Wanted(layer=8, source_view="mlp_in")).source_view == "mlp_in"
    assert read_matryoshka(folder, Wanted(layer=8, source_view="ln2_normalized")).source_view == "ln2_normalized"


def test_a_checkpoint_without_its_threshold_is_refused(tmp_path: Path) -> None:
    stored = {key: tensor for key, tensor in tensors(5).items() if key != "threshold"}
    with pytest.raises(MismatchError, match="no threshold"):
        read_matryoshka(write(tmp_path / "x", TRANSCODER, stored), WANTED)
