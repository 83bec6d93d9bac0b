"""dictionary_learning's classes, written and read, against their definitions."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import DamagedError, MismatchError
from transcoder.formats.about import About
from transcoder.formats.peers.dictionary_learning import (
    find_dictionary_learning,
    read_dictionary_learning,
    write_dictionary_learning,
)
from transcoder.formats.wanted import Wanted
from transcoder.rules.batchtopk import BatchTopK
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

WANTED = Wanted(layer=8, d_source=6, d_target=6)
Make = Callable[..., Transcoder]


def their_forward(folder: Path, source: torch.Tensor, *, groups: int | None = None) -> torch.Tensor:
    """What dictionary_learning computes from such a folder, in float64."""
    kind = json.loads((folder / "config.json").read_text())["trainer"]["dict_class"]
    stored = {name: tensor.double() for name, tensor in torch.load(folder / "ae.pt", weights_only=True).items()}
    bias = stored["b_dec"] if "b_dec" in stored else stored["bias"]
    seen = source.double() - (0 if kind == "JumpReluAutoEncoder" else bias)
    encoder = stored["W_enc"] if "W_enc" in stored else stored["encoder.weight"].T
    decoder = stored["W_dec"] if "W_dec" in stored else stored["decoder.weight"].T
    pre = (seen @ encoder + (stored["b_enc"] if "b_enc" in stored else stored["encoder.bias"])).relu()
    if kind == "AutoEncoderTopK":
        top = pre.topk(int(stored["k"]), dim=1)
        acts = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    else:
        acts = pre * (pre > stored.get("threshold", 0))
    if groups is not None:
        acts[:, int(stored["group_sizes"][:groups].sum()) :] = 0
    return acts @ decoder + bias


RULES: dict[str, Any] = {
    "AutoEncoderTopK": TopK(5),
    "MatryoshkaBatchTopKSAE": BatchTopK(5, 0.25),
    "JumpReluAutoEncoder": JumpReLU(torch.linspace(0, 0.5, 24)),
}


@pytest.mark.parametrize("kind", RULES)
def test_every_class_is_read_back_as_it_was_written(
    tmp_path: Path, make_transcoder: Make, about: About, source: torch.Tensor, kind: str
) -> None:
    trained = make_transcoder(RULES[kind])
    write_dictionary_learning(tmp_path, trained, about)
    assert json.loads((tmp_path / "config.json").read_text())["trainer"]["dict_class"] == kind
    torch.testing.assert_close(their_forward(tmp_path, source), trained(source).double(), atol=1e-5, rtol=1e-5)
    assert find_dictionary_learning(tmp_path / "ae.pt", WANTED) == tmp_path
    read = read_dictionary_learning(tmp_path, WANTED)
    assert read.rule.name == trained.rule.name
    assert read.prefixes == trained.prefixes
    assert (read.config["source_site"], read.config["target_site"]) == ("mlp_in", "mlp_out")
    torch.testing.assert_close(read(source), trained(source), atol=1e-5, rtol=1e-5)


def test_its_groups_are_our_prefixes(tmp_path: Path, make_transcoder: Make, about: About, source: torch.Tensor) -> None:
    trained = make_transcoder(RULES["MatryoshkaBatchTopKSAE"])
    write_dictionary_learning(tmp_path, trained, about)
    for groups, prefix in enumerate(trained.prefixes, start=1):
        ours = trained(source, prefix=prefix)
        computed = their_forward(tmp_path, source, groups=groups)
        torch.testing.assert_close(computed, ours.double(), atol=1e-5, rtol=1e-5)


def written(folder: Path, kind: str, tensors: dict[str, torch.Tensor], **trainer: Any) -> Path:
    folder.mkdir()
    torch.save(tensors, folder / "ae.pt")
    record = {"dict_class": kind, "layer": 8, "submodule_name": "resid_post_layer_8", "lm_name": "gpt2"} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": record}))
    return folder


def linear(seed: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"encoder.weight": (24, 6), "encoder.bias": (24,), "decoder.weight": (6, 24), "bias": (6,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_dictionaries_of_the_tool_are_autoencoders_of_the_residual_stream(tmp_path: Path, source: torch.Tensor) -> None:
    folder = written(tmp_path / "relu", "AutoEncoder", linear())
    read = read_dictionary_learning(folder, WANTED)
    assert read.rule.name == "relu"
    assert (read.config["source_site"], read.config["target_site"]) == ("resid_post", "resid_post")
    assert read.prefixes == (24,)
    assert "no prefixes" in read.config["notes"][0]
    torch.testing.assert_close(read(source).double(), their_forward(folder, source), atol=1e-4, rtol=1e-4)


def test_what_is_not_linear_or_not_finished_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="GatedAutoEncoder"):
        read_dictionary_learning(written(tmp_path / "gated", "GatedAutoEncoder", linear()), WANTED)
    tensors = linear()
    tensors["b_dec"] = tensors.pop("bias")
    batch = tensors | {"k": torch.tensor(5), "threshold": torch.tensor(-1.0)}
    with pytest.raises(MismatchError, match="never set"):
        read_dictionary_learning(written(tmp_path / "early", "BatchTopKSAE", batch), WANTED)
    with pytest.raises(DamagedError, match="k is 99"):
        read_dictionary_learning(written(tmp_path / "k", "AutoEncoderTopK", tensors | {"k": torch.tensor(99)}), WANTED)
    with pytest.raises(MismatchError, match="stranger"):
        read_dictionary_learning(
            written(tmp_path / "more", "AutoEncoder", linear() | {"stranger": torch.zeros(1)}), WANTED
        )
    with pytest.raises(MismatchError, match="not a tensor that a cache"):
        read_dictionary_learning(
            written(tmp_path / "where", "AutoEncoder", linear(), submodule_name="somewhere"), WANTED
        )


def test_a_skip_or_two_widths_are_refused(tmp_path: Path, make_transcoder: Make, about: About) -> None:
    with pytest.raises(AssertionError, match="skip"):
        write_dictionary_learning(tmp_path, make_transcoder(skip=True), about)
    with pytest.raises(AssertionError, match="width"):
        write_dictionary_learning(tmp_path, make_transcoder(d_target=5), replace(about, layer=1))
