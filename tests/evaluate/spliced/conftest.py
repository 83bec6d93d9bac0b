"""The embedded models, and random dictionaries of their width."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from harvest.model.language_model import LanguageModel, load_model
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

MODELS = Path(__file__).parents[3] / "models"
TOP_K, DICT_SIZE, PREFIXES = 8, 192, (48, 192)

Build = Callable[[int], Transcoder]


@pytest.fixture(scope="package", params=["gpt2-stdlib", "gemma2-stdlib"])
def embedded(request: pytest.FixtureRequest) -> LanguageModel:
    return load_model(str(MODELS / request.param), device="cpu", dtype="float32")


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two contexts that begin with the special token of both models that stands there; another inside."""
    drawn = torch.randint(10, 2000, (2, 14), generator=torch.Generator().manual_seed(3))
    drawn[:, 0] = 0
    drawn[1, 6] = 1
    return drawn


@pytest.fixture
def build(embedded: LanguageModel) -> Build:
    def transcoder(layer: int) -> Transcoder:
        width = embedded.source.width
        norm = embedded.norm(layer)
        config = {"layer": layer, "gain": norm.gain.tolist(), "bias": norm.bias.tolist()}
        arrays = random_arrays(width, width, dict_size=DICT_SIZE, seed=layer)
        arrays["b_dec"] = torch.full((width,), 0.01)
        return Transcoder(**arrays, rule=TopK(TOP_K), prefixes=PREFIXES, name=f"random {layer}", config=config)

    return transcoder
