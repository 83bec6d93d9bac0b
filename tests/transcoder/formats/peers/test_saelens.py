"""SAELens's folders: a written one computes what SAELens would, and every convention of SAELens is read or refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import DamagedError, MismatchError
from transcoder.formats.about import About
from transcoder.formats.peers.saelens import find_saelens, read_saelens, write_saelens
from transcoder.formats.wanted import Wanted
from transcoder.rules.relu import ReLU
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

WANTED = Wanted(layer=8, d_source=6, d_target=6)
Make = Callable[..., Transcoder]


def their_forward(folder: Path, source: torch.Tensor) -> torch.Tensor:
    """What SAELens computes from such a folder, in float64."""
    config = json.loads((folder / "cfg.json").read_text())
    stored = {name: tensor.double() for name, tensor in load_file(folder / "sae_weights.safetensors").items()}
    source = source.double()
    norms = stored["W_dec"].norm(dim=1) if config.get("rescale_acts_by_decoder_norm") else torch.ones(1)
    pre = ((source - stored["b_dec"] * config["apply_b_dec_to_input"]) @ stored["W_enc"] + stored["b_enc"]) * norms
    if "threshold" in stored:
        acts = pre.relu() * (pre > stored["threshold"])
    elif config["architecture"] == "topk":
        top = pre.topk(config["k"], dim=1)
        acts = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    else:
        acts = pre.relu()
    skip = source @ stored["W_skip"].T if "W_skip" in stored else 0
    return (acts / norms) @ stored["W_dec"] + stored["b_dec"] + skip


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "topk": (TopK(5), {}),
    "jumprelu_transcoder": (JumpReLU(torch.linspace(0, 0.5, 24)), {"d_target": 6}),
    "jumprelu_skip_transcoder": (JumpReLU(torch.linspace(0, 0.5, 24)), {"skip": True}),
    "transcoder": (ReLU(), {}),
    "skip_transcoder": (ReLU(), {"skip": True}),
}


@pytest.mark.parametrize("architecture", KINDS)
def test_what_is_written_is_what_saelens_computes(
    tmp_path: Path, make_transcoder: Make, about: About, source: torch.Tensor, architecture: str
) -> None:
    rule, options = KINDS[architecture]
    trained = make_transcoder(rule, **options)
    write_saelens(tmp_path / "x", trained, about)
    assert json.loads((tmp_path / "x" / "cfg.json").read_text())["architecture"] == architecture
    torch.testing.assert_close(their_forward(tmp_path / "x", source), trained(source).double(), atol=1e-5, rtol=1e-5)
    read = read_saelens(tmp_path / "x", WANTED)
    assert read.prefixes == trained.prefixes
    for name, array in trained.arrays().items():
        assert torch.equal(array, read.arrays()[name]), name


def test_two_widths_and_the_normalised_input(tmp_path: Path, make_transcoder: Make, about: About) -> None:
    trained = make_transcoder(JumpReLU(torch.ones(24)), d_target=5)
    write_saelens(tmp_path / "x", trained, replace(about, source_site="ln2_normalized"))
    read = read_saelens(tmp_path / "x", Wanted(layer=8))
    assert read.source_view == "ln2_normalized"
    assert (read.d_source, read.d_target) == (6, 5)
    with pytest.raises(AssertionError, match="one width"):
        write_saelens(tmp_path / "y", make_transcoder(TopK(2), d_target=5), about)


def test_an_autoencoder_has_one_hook(tmp_path: Path, make_transcoder: Make, about: About) -> None:
    site = replace(about, source_site="resid_post", target_site="resid_post")
    for rule, architecture in ((TopK(5), "topk"), (JumpReLU(torch.ones(24)), "jumprelu"), (ReLU(), "standard")):
        folder = tmp_path / architecture
        write_saelens(folder, make_transcoder(rule), site)
        config = json.loads((folder / "cfg.json").read_text())
        assert config["architecture"] == architecture
        assert config["metadata"]["hook_name"] == "blocks.8.hook_resid_post"
        assert "hook_name_out" not in config["metadata"]
        read = read_saelens(folder, WANTED)
        assert (read.config["source_site"], read.config["target_site"]) == ("resid_post", "resid_post")


def rewritten(folder: Path, **changed: Any) -> Path:
    config = json.loads((folder / "cfg.json").read_text()) | changed
    (folder / "cfg.json").write_text(json.dumps({name: value for name, value in config.items() if value is not None}))
    return folder


@pytest.mark.parametrize(
    "changed",
    [
        {"apply_b_dec_to_input": True},
        {"rescale_acts_by_decoder_norm": True},
        {"architecture": "standard", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "k": None},
    ],
)
def test_other_conventions_of_saelens_are_folded(
    tmp_path: Path, make_transcoder: Make, about: About, source: torch.Tensor, changed: dict[str, Any]
) -> None:
    trained = make_transcoder()
    trained.W_dec.mul_(torch.linspace(0.5, 2, 24)[:, None])
    write_saelens(tmp_path / "x", trained, about)
    folder = rewritten(tmp_path / "x", **changed)
    read = read_saelens(folder, WANTED)
    rewritten(folder, architecture="topk", k=5)  # what the definition above understands
    torch.testing.assert_close(read(source).double(), their_forward(folder, source), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"architecture": "gated"}, "'gated'"),
        ({"normalize_activations": "layer_norm"}, "scaled by 'layer_norm'"),
        ({"normalize_activations": "expected_average_only_in"}, "scaled"),
        ({"finetuning_scaling_factor": True}, "factor"),
        ({"reshape_activations": "hook_z"}, "heads"),
        ({"activation_fn": "tanh-relu", "architecture": "standard"}, "tanh-relu"),
    ],
)
def test_what_is_not_supported_is_refused(
    tmp_path: Path, make_transcoder: Make, about: About, changed: dict[str, Any], told: str
) -> None:
    write_saelens(tmp_path / "x", make_transcoder(), about)
    with pytest.raises(MismatchError, match=told):
        read_saelens(rewritten(tmp_path / "x", **changed), WANTED)


def test_an_impossible_k_and_a_row_of_zeros_are_damage(tmp_path: Path, make_transcoder: Make, about: About) -> None:
    trained = make_transcoder()
    write_saelens(tmp_path / "x", trained, about)
    for k in (0, 25, "5", None):
        with pytest.raises(DamagedError, match="k is"):
            read_saelens(rewritten(tmp_path / "x", k=k), WANTED)
    trained.W_dec[3] = 0
    write_saelens(tmp_path / "y", trained, about)
    with pytest.raises(DamagedError, match="NaN"):
        read_saelens(rewritten(tmp_path / "y", rescale_acts_by_decoder_norm=True), WANTED)


def test_a_dictionary_is_found_by_folder_or_file(tmp_path: Path) -> None:
    assert find_saelens(tmp_path, WANTED) is None
    save_file({"a": torch.zeros(1)}, tmp_path / "sae_weights.safetensors")
    assert find_saelens(tmp_path, WANTED) == tmp_path
    assert find_saelens(tmp_path / "sae_weights.safetensors", WANTED) == tmp_path
