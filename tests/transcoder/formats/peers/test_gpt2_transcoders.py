"""The public transcoders of GPT-2: a pickle with an object, of which only attributes are read."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from common.errors import DamagedError, MismatchError
from transcoder.formats.peers.gpt2_transcoders import find_gpt2_transcoder, read_gpt2_transcoder
from transcoder.formats.wanted import Wanted

WANTED = Wanted(layer=8, d_source=6, d_target=5)
NAME = "final_sparse_autoencoder_gpt2-small_blocks.8.ln2.hook_normalized_24576.pt"


@pytest.fixture
def config_class() -> Iterator[type]:
    """The class under the name that their files hold, there only while a file is written."""
    package, module = ModuleType("sae_training"), ModuleType("sae_training.config")
    kind = type("LanguageModelSAERunnerConfig", (), {"__module__": "sae_training.config"})
    module.LanguageModelSAERunnerConfig = kind  # type: ignore[attr-defined]
    sys.modules |= {"sae_training": package, "sae_training.config": module}
    yield kind
    sys.modules.pop("sae_training", None)
    sys.modules.pop("sae_training.config", None)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (6, 24), "b_enc": (24,), "W_dec": (24, 5), "b_dec": (6,), "b_dec_out": (5,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def write(folder: Path, config_class: type, **changed: Any) -> Path:
    settings = config_class()
    settings.hook_point = "blocks.8.ln2.hook_normalized"
    settings.out_hook_point = "blocks.8.hook_mlp_out"
    settings.model_name = "gpt2-small"
    settings.dtype = torch.float32
    settings.device = torch.device("cpu")
    path = folder / NAME
    torch.save({"cfg": settings, "state_dict": tensors()} | changed, path)
    for name in ("sae_training", "sae_training.config"):
        del sys.modules[name]  # the reader has no such package
    return path


def test_a_file_computes_what_its_authors_code_does(tmp_path: Path, config_class: type) -> None:
    path = write(tmp_path, config_class)
    assert find_gpt2_transcoder(path, WANTED) == path
    read = read_gpt2_transcoder(path, WANTED)
    assert read.source_view == "ln2_normalized"
    assert any("centred" in note for note in read.config["notes"])
    source = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    known = {name: tensor.double() for name, tensor in tensors().items()}
    acts = ((source.double() - known["b_dec"]) @ known["W_enc"] + known["b_enc"]).relu()
    torch.testing.assert_close(read(source).double(), acts @ known["W_dec"] + known["b_dec_out"], atol=1e-4, rtol=1e-4)


def test_anything_else_in_it_is_refused(tmp_path: Path, config_class: type) -> None:
    torch.save(tensors(), tmp_path / NAME)
    with pytest.raises(DamagedError, match="cfg and state_dict"):
        read_gpt2_transcoder(tmp_path / NAME, WANTED)
    with pytest.raises(MismatchError, match="extra"):
        read_gpt2_transcoder(write(tmp_path, config_class, state_dict=tensors() | {"extra": torch.zeros(1)}), WANTED)
