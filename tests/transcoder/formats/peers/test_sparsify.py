"""sparsify's folders: transcoders and autoencoders compute what sparsify would."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.errors import MismatchError, UsageError
from transcoder.formats.about import About
from transcoder.formats.peers.sparsify import caveat, find_sparsify, read_sparsify, write_sparsify
from transcoder.formats.wanted import Wanted
from transcoder.transcoder import Transcoder

WANTED = Wanted(layer=8, d_source=6, d_target=6)
Make = Callable[..., Transcoder]


def their_forward(folder: Path, source: torch.Tensor) -> torch.Tensor:
    """What sparsify computes from such a folder, in float64."""
    config = json.loads((folder / "cfg.json").read_text())
    stored = {name: tensor.double() for name, tensor in load_file(folder / "sae.safetensors").items()}
    source = source.double()
    seen = source if config["transcode"] else source - stored["b_dec"]
    pre = (seen @ stored["encoder.weight"].T + stored["encoder.bias"]).relu()
    top = pre.topk(config["k"], dim=1)
    acts = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    skip = source @ stored["W_skip"].T if config["skip_connection"] else 0
    return acts @ stored["W_dec"] + stored["b_dec"] + skip


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_is_read_back_as_it_was_written(
    tmp_path: Path, make_transcoder: Make, about: About, source: torch.Tensor, skip: bool
) -> None:
    trained = make_transcoder(skip=skip)
    write_sparsify(tmp_path / "h.8.mlp", trained, about)
    torch.testing.assert_close(
        their_forward(tmp_path / "h.8.mlp", source), trained(source).double(), atol=1e-5, rtol=1e-5
    )
    found = find_sparsify(tmp_path, WANTED)
    assert found == tmp_path / "h.8.mlp"
    read = read_sparsify(found, WANTED)
    assert (read.config["source_site"], read.config["target_site"]) == ("mlp_in", "mlp_out")
    assert read.prefixes == trained.prefixes
    for name, array in trained.arrays().items():
        assert torch.equal(array, read.arrays()[name]), name


def test_an_autoencoder_subtracts_its_bias(
    tmp_path: Path, make_transcoder: Make, about: About, source: torch.Tensor
) -> None:
    trained = make_transcoder()
    write_sparsify(tmp_path / "h.8", trained, replace(about, source_site="resid_post", target_site="resid_post"))
    torch.testing.assert_close(their_forward(tmp_path / "h.8", source), trained(source).double(), atol=1e-5, rtol=1e-5)
    read = read_sparsify(tmp_path / "h.8", WANTED)
    assert (read.config["source_site"], read.config["target_site"]) == ("resid_post", "resid_post")
    torch.testing.assert_close(read(source), trained(source), atol=1e-5, rtol=1e-5)


def test_what_sparsify_cannot_express_is_refused(tmp_path: Path, make_transcoder: Make, about: About) -> None:
    write_sparsify(tmp_path / "somewhere", make_transcoder(), about)
    with pytest.raises(UsageError, match="not a module"):
        read_sparsify(tmp_path / "somewhere", WANTED)
    write_sparsify(tmp_path / "layers.8.mlp", make_transcoder(), about)
    config = json.loads((tmp_path / "layers.8.mlp" / "cfg.json").read_text()) | {"activation": "groupmax"}
    (tmp_path / "layers.8.mlp" / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(MismatchError, match="groupmax"):
        read_sparsify(tmp_path / "layers.8.mlp", WANTED)


def test_an_export_of_gemma_2_has_a_caveat_about_its_fvu(about: About) -> None:
    assert not caveat(about)
    assert "FVU" in caveat(replace(about, architecture="gemma2"))
    assert not caveat(replace(about, architecture="gemma2", source_site="resid_post", target_site="resid_post"))
