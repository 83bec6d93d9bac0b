"""The unembedding of both embedded models: their logits follow from it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from common.errors import MismatchError
from harvest.model.language_model import load_model
from harvest.model.source import find_model
from harvest.model.unembedding import bytes_beside, final_norm, gain_of, read_unembedding, unembedding_of

MODELS = Path(__file__).resolve().parents[3] / "models"


@pytest.mark.parametrize("name", ["gpt2-stdlib", "gemma2-stdlib"])
def test_the_gain_and_the_unembedding_give_the_models_logits(name: str) -> None:
    found = read_unembedding(str(MODELS / name), width=96, revision=None)
    model = load_model(str(MODELS / name), device="cpu", dtype="float32")
    norm = final_norm(model)
    residual = torch.randn(3, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model.hugging.get_output_embeddings()(norm(residual) - norm(torch.zeros_like(residual)))
    moved = residual - (residual.mean(dim=1, keepdim=True) if found.centred else 0)
    scaled = moved / moved.square().mean(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close((scaled * found.gain) @ found.W_U.T, expected, rtol=1e-3, atol=1e-2)


def test_a_model_that_was_cut_or_is_in_bfloat16_has_the_same_gain() -> None:
    full = read_unembedding(str(MODELS / "gemma2-stdlib"), width=96, revision=None)
    model = load_model(str(MODELS / "gemma2-stdlib"), device="cpu", dtype="bfloat16")
    model.cut(1)
    cut = unembedding_of(model)
    torch.testing.assert_close(cut.gain, full.gain, rtol=1e-2, atol=1e-3)
    assert cut.W_U.dtype == torch.bfloat16
    assert all((cut.arrays()[name] == array).all() for name, array in full.arrays().items() if "gain" not in name)


def test_a_model_of_another_width_is_refused() -> None:
    with pytest.raises(MismatchError, match="width"):
        read_unembedding(str(MODELS / "gpt2-stdlib"), width=7, revision=None)


def test_a_large_unembedding_is_stored_beside_many_rows_only() -> None:
    source = find_model(str(MODELS / "gpt2-stdlib"))
    assert bytes_beside(source, rows_bytes=0) == 2 * 96 * source.vocabulary
    source.config.vocab_size = 1 << 20
    assert bytes_beside(source, rows_bytes=0) == 0
    assert bytes_beside(source, rows_bytes=1 << 33) == 2 * 96 << 20


def test_the_gain_of_both_kinds_of_norm_is_found() -> None:
    layer_norm = nn.LayerNorm(64)
    nn.init.uniform_(layer_norm.weight, 0.5, 2)
    nn.init.uniform_(layer_norm.bias)
    gain, centred = gain_of(layer_norm, 64)
    assert centred
    torch.testing.assert_close(gain, layer_norm.weight.detach(), rtol=1e-3, atol=1e-3)

    rms = nn.RMSNorm(64, eps=1e-6)
    nn.init.uniform_(rms.weight, 0.5, 2)
    gain, centred = gain_of(rms, 64)
    assert not centred
    torch.testing.assert_close(gain, rms.weight.detach(), rtol=1e-3, atol=1e-3)


def test_another_module_is_no_norm() -> None:
    with pytest.raises(ValueError, match="neither"):
        gain_of(nn.Linear(16, 16), 16)
