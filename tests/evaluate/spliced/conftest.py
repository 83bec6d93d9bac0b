"""The embedded models and random dictionaries of their width; small random models of both families and caches."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, PretrainedConfig

from cache.reader import CacheReader
from evaluate.spliced.contexts import Contexts, held_out_contexts
from evaluate.spliced.replace import MLP
from evaluate.spliced.splicer import Splicer
from harvest.model.forward import run_modules
from harvest.model.language_model import LanguageModel, load_model
from tests.helpers.caches import write_cache as write_rows
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
    """Two contexts that begin with the special token that both models begin with; another one inside."""
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


LAYER, WIDTH, CONTEXT = 1, 64, 24
CONFIGS = {
    "gpt2": GPT2Config(vocab_size=2048, n_positions=64, n_embd=WIDTH, n_layer=3, n_head=4),
    "gemma2": Gemma2Config(
        vocab_size=2048, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=64, sliding_window=32, query_pre_attn_scalar=16,
    ),
}  # fmt: skip


def write_model(folder: Path, config: PretrainedConfig) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODELS / "gpt2-stdlib" / name, folder / name)
    return folder


def write_cache(model: LanguageModel, folder: Path) -> Path:
    """Six held-out contexts of random tokens, as a harvest would write them."""
    special = list(model.tokenizer.special_ids)
    tokens = torch.randint(100, 2000, (6, CONTEXT), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = special[0]
    tokens[2, 10] = special[0]
    captured = run_modules(model, tokens, keys=[(LAYER, "mlp_in"), (LAYER, "mlp_out")])
    rows: dict[str, Any] = {
        "source": captured[LAYER, "mlp_in"].flatten(0, 1),
        "target": captured[LAYER, "mlp_out"].flatten(0, 1),
        "tokens": tokens.flatten().numpy().astype(np.int32),
        "document": np.arange(tokens.numel(), dtype=np.int64) // 12,
        "position": np.tile(np.arange(CONTEXT, dtype=np.int32), 6),
    }
    identity = {"model": str(folder), "weights_hash": model.source.weights_hash, "tokenizer_hash": model.tokenizer.hash}
    identity |= {"layer": LAYER, "source_site": "mlp_in", "target_site": "mlp_out", "model_dtype": "float32"}
    sizes = {"chunk_rows": 16, "shard_rows": 32, "segment_rows": 32}
    return write_rows(
        folder.parent / "cache", rows, rows, identity=identity, special_ids=special, dtype="float32", **sizes
    )


@pytest.fixture(scope="package", params=["gpt2", "gemma2"])
def small_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp(request.param) / "model", CONFIGS[request.param])


@pytest.fixture(scope="package")
def small_model(small_folder: Path) -> LanguageModel:
    return load_model(str(small_folder), device="cpu", dtype="float32")


@pytest.fixture(scope="package")
def small_cache(small_model: LanguageModel, small_folder: Path) -> Path:
    return write_cache(small_model, small_folder)


@pytest.fixture(scope="package")
def relu_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LanguageModel, Path]:
    """The GPT-2 with a ReLU in its MLPs: its folder, the model, and a cache of it."""
    config = GPT2Config(**CONFIGS["gpt2"].to_diff_dict() | {"activation_function": "relu"})
    folder = write_model(tmp_path_factory.mktemp("relu") / "model", config)
    model = load_model(str(folder), device="cpu", dtype="float32")
    return folder, model, write_cache(model, folder)


@pytest.fixture(scope="package")
def small_splicer(small_model: LanguageModel) -> Splicer:
    return Splicer(small_model, {LAYER: MLP}, small_model.tokenizer.special_ids)


@pytest.fixture(scope="package")
def small_context(small_cache: Path) -> Contexts:
    """A context that has a special token in its middle."""
    return held_out_contexts(CacheReader.open(small_cache), tokens=10_000, batch_tokens=1, device="cpu")[2]
