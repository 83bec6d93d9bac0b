"""The unembedding of both embedded models: their logits follow from it."""

from pathlib import Path

import pytest
import torch

from common.errors import MismatchError
from evaluate.features.effects.unembedding import final_norm, read_unembedding
from harvest.model.language_model import load_model

MODELS = Path(__file__).resolve().parents[4] / "models"


@pytest.mark.parametrize(("name", "width"), [("gpt2-stdlib", 96), ("gemma2-stdlib", 96)])
def test_the_gain_and_the_unembedding_give_the_models_logits(name: str, width: int) -> None:
    found = read_unembedding(str(MODELS / name), width=width, revision=None)
    model = load_model(str(MODELS / name), device="cpu", dtype="float32")
    norm = final_norm(model)
    residual = torch.randn(3, width, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model.hugging.get_output_embeddings()(norm(residual) - norm(torch.zeros_like(residual)))
    moved = residual - (residual.mean(dim=1, keepdim=True) if found.centred else 0)
    scaled = moved / moved.square().mean(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close((scaled * found.gain) @ found.W_U.T, expected, rtol=1e-3, atol=1e-2)


def test_a_model_of_another_width_is_refused() -> None:
    with pytest.raises(MismatchError, match="width"):
        read_unembedding(str(MODELS / "gpt2-stdlib"), width=7, revision=None)
