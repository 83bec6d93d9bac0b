"""Splicing into both families: an exact copy loses nothing, ablations are what they say, special positions stay."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, PretrainedConfig

from cache.config import CacheSettings
from cache.reader import CacheReader
from cache.writer import CacheWriter
from common.errors import MismatchError, UsageError
from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.run import evaluate_layer
from evaluate.spliced.contexts import Contexts, held_out_contexts
from evaluate.spliced.replace import MLP
from evaluate.spliced.splicer import Splicer, check_model
from harvest.model.forward import run_modules
from harvest.model.language_model import LanguageModel, load_model
from harvest.model.sites import module_at
from transcoder.formats.native import save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

LAYER, WIDTH, CONTEXT, BOS = 1, 64, 24, 0
ZERO = {LAYER: lambda _, own: torch.zeros_like(own)}
EMBEDDED = Path(__file__).parents[3] / "models" / "gpt2-stdlib"
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
        shutil.copy(EMBEDDED / name, folder / name)
    return folder


@pytest.fixture(scope="module", params=["gpt2", "gemma2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp(request.param) / "model", CONFIGS[request.param])


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load_model(str(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def cache(model: LanguageModel, folder: Path) -> Path:
    return write_cache(model, folder)


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
    with CacheWriter(
        folder.parent / "cache",
        identity=identity,
        settings=CacheSettings(dtype="float32", chunk_rows=16, shard_rows=32, segment_rows=32),
        d_source=WIDTH,
        d_target=WIDTH,
        train_rows=6 * CONTEXT,
        held_out_rows=6 * CONTEXT,
        special_ids=special,
        arrays={},
    ) as writer:
        writer.append(**rows, held_out=False, cursor=0)
        writer.append(**rows, held_out=True, cursor=1)
    return folder.parent / "cache"


@pytest.fixture(scope="module")
def splicer(model: LanguageModel) -> Splicer:
    return Splicer(model, {LAYER: MLP}, model.tokenizer.special_ids)


@pytest.fixture(scope="module")
def context(cache: Path) -> Contexts:
    """One that has a special token in its middle."""
    return held_out_contexts(CacheReader.open(cache), tokens=10_000, batch_tokens=1, device="cpu")[2]


def own_mlp(model: LanguageModel) -> Any:
    family, block = model.family, model.block(LAYER)

    def replacement(source: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        out = module_at(block, family.mlp).forward(source)
        return module_at(block, family.post_norm).forward(out) if family.post_norm else out

    return replacement


@pytest.mark.parametrize(("batch_tokens", "shapes"), [(1, [1] * 6), (4 * CONTEXT, [4, 2]), (10_000, [6])])
def test_contexts_come_back_as_they_were_harvested(cache: Path, batch_tokens: int, shapes: list[int]) -> None:
    reader = CacheReader.open(cache)
    contexts = held_out_contexts(reader, tokens=10_000, batch_tokens=batch_tokens, device="cpu")
    assert [tuple(some.tokens.shape) for some in contexts] == [(count, CONTEXT) for count in shapes]
    assert torch.cat([some.tokens for some in contexts]).flatten().tolist() == reader.split("held_out").tokens.tolist()
    assert contexts[0].positions[0].tolist() == list(range(CONTEXT))
    first = held_out_contexts(reader, tokens=CONTEXT + 1, batch_tokens=1, device="cpu")
    assert len(first) == 2


def test_positions_start_anew_where_attention_does(cache: Path) -> None:
    reader = CacheReader.open(cache)
    reader.identity["attention"] = "document"
    contexts = held_out_contexts(reader, tokens=CONTEXT, batch_tokens=1, device="cpu")
    assert contexts[0].positions[0].tolist() == [*range(12), *range(12)]


def test_an_exact_copy_of_the_mlp_loses_nothing(splicer: Splicer, context: Contexts) -> None:
    copied = splicer.log_probabilities(context, {LAYER: own_mlp(splicer.model)})
    torch.testing.assert_close(copied, splicer.log_probabilities(context), atol=1e-5, rtol=0)


def test_a_transcoder_that_is_the_mlp_costs_nothing(tmp_path: Path) -> None:
    """An MLP with ReLU is a transcoder all of whose features may fire."""
    config = GPT2Config(**CONFIGS["gpt2"].to_diff_dict() | {"activation_function": "relu"})
    model = load_model(str(write_model(tmp_path / "model", config)), device="cpu", dtype="float32")
    mlp = model.block(LAYER).mlp
    arrays = (mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight, mlp.c_proj.bias)
    W_enc, *others = (array.detach().clone() for array in arrays)
    transcoder = Transcoder(W_enc.T.contiguous(), *others, rule=TopK(256), prefixes=(128, 256))
    save_transcoder(transcoder, tmp_path / "main", config={})
    metrics = evaluate_layer(
        cache=write_cache(model, tmp_path / "model"), transcoder=tmp_path / "main", out=tmp_path / "report",
        settings=EvaluateSettings(bootstrap=0), device="cpu", lm=str(tmp_path / "model"), gemma_scope=None,
        against=None, force=False, progress=Silent(),
    )  # fmt: skip
    half, whole = metrics["language_model"]["per_prefix"]
    assert metrics["fvu"] < 1e-9
    assert abs(whole["delta"]) < 1e-6
    assert abs(whole["kl"]) < 1e-6 < 1e-4 < half["kl"]


def test_clean_is_the_models_own_loss(splicer: Splicer, context: Contexts) -> None:
    expected = splicer.model.hugging(input_ids=context.tokens, labels=context.tokens).loss
    log_probabilities = splicer.log_probabilities(context)[:, :-1].gather(2, context.tokens[:, 1:, None])
    assert -float(log_probabilities.mean()) == pytest.approx(float(expected), rel=1e-5)


def test_a_pass_begun_at_the_layer_is_the_whole_pass(splicer: Splicer, context: Contexts) -> None:
    clean, before = splicer.clean(context)
    torch.testing.assert_close(clean, splicer.log_probabilities(context), atol=0, rtol=0)
    whole, begun = (splicer.log_probabilities(context, ZERO, before=known) for known in (None, before))
    torch.testing.assert_close(begun, whole, atol=0, rtol=0)
    torch.testing.assert_close(splicer.log_probabilities(context), clean, atol=0, rtol=0)
    first = Splicer(splicer.model, {0: MLP}, splicer.special_ids)
    assert first.clean(context)[1] is None


def test_zero_changes_ordinary_positions_alone(splicer: Splicer, context: Contexts) -> None:
    clean = splicer.log_probabilities(context)
    zero = splicer.log_probabilities(context, ZERO)
    assert float((clean[0, 0] - zero[0, 0]).abs().max()) < 1e-6
    assert float((clean[0, 1:] - zero[0, 1:]).abs().max()) > 1e-2
    everything = Splicer(splicer.model, {LAYER: MLP}, tuple(range(2048)))
    torch.testing.assert_close(everything.log_probabilities(context, ZERO), clean, atol=1e-6, rtol=0)


def test_zero_is_the_ablation_of_the_residual_contribution(splicer: Splicer, context: Contexts) -> None:
    model, ordinary = splicer.model, ~splicer.kept(context.tokens)
    before = run_modules(model, context.tokens, keys=[(LAYER, "resid_mid"), (LAYER, "mlp_out")])
    expected = before[LAYER, "resid_mid"] + before[LAYER, "mlp_out"] * ~ordinary[:, :, None]

    def ablate(_: Any, __: Any, output: Any) -> Any:
        return (expected, *output[1:]) if isinstance(output, tuple) else expected

    handle = model.block(LAYER).register_forward_hook(ablate)
    try:
        ablated = splicer.log_probabilities(context)
    finally:
        handle.remove()
    torch.testing.assert_close(splicer.log_probabilities(context, ZERO), ablated, atol=1e-5, rtol=0)


def test_the_whole_stage_says_what_the_definition_says(
    folder: Path, cache: Path, splicer: Splicer, tmp_path: Path
) -> None:
    arrays = random_arrays(WIDTH, WIDTH, dict_size=96, seed=0)
    transcoder = Transcoder(**arrays, rule=TopK(8), prefixes=(32, 96))
    save_transcoder(transcoder, tmp_path / "main", config={})
    metrics = evaluate_layer(
        cache=cache, transcoder=tmp_path / "main", out=tmp_path / "report", settings=EvaluateSettings(bootstrap=20),
        device="cpu", lm=str(folder), gemma_scope=None, against=None, force=False, progress=Silent(),
    )["language_model"]  # fmt: skip
    clean, replaced, kl, top1 = [], [], [], []
    for context in held_out_contexts(CacheReader.open(cache), tokens=10_000, batch_tokens=1, device="cpu"):
        counted = ~splicer.kept(context.tokens)[0, :-1]
        own = splicer.log_probabilities(context)[0, :-1][counted]
        other = splicer.log_probabilities(context, {LAYER: lambda x, _: transcoder.forward(x, prefix=32)})[0, :-1][
            counted
        ]
        following = context.tokens[0, 1:][counted][:, None]
        clean.append(-own.gather(1, following))
        replaced.append(-other.gather(1, following))
        kl.append((own.exp() * (own - other)).sum(1))
        top1.append((own.argmax(1) == other.argmax(1)).float())
    first = metrics["per_prefix"][0]
    assert metrics["tokens"] == sum(map(len, clean))
    assert metrics["clean"] == pytest.approx(float(torch.cat(clean).mean()), rel=1e-5)
    assert first["delta"] == pytest.approx(float(torch.cat(replaced).mean() - torch.cat(clean).mean()), abs=1e-5)
    assert first["kl"] == pytest.approx(float(torch.cat(kl).mean()), abs=1e-5)
    assert first["top1"] == pytest.approx(float(torch.cat(top1).mean()), abs=1e-6)
    low, high = first["delta_interval"]
    assert low < first["delta"] < high
    assert metrics["zero"]["cross_entropy"] == pytest.approx(metrics["clean"] + metrics["zero"]["delta"])
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    for name in (*metrics, *(f"per_prefix[].{name}" for name in first)):
        assert f"`language_model.{name}" in page
    assert "Spliced into the language model" in (tmp_path / "report" / "summary.txt").read_text()


def test_another_model_or_site_is_refused(model: LanguageModel, cache: Path, toy_cache: Path) -> None:
    with pytest.raises(MismatchError, match="weights_hash"):
        check_model(model, CacheReader.open(toy_cache))
    reader = CacheReader.open(cache)
    reader.identity["source_site"] = "hook_z"
    with pytest.raises(UsageError, match="'hook_z' is no site of a language model"):
        check_model(model, reader)
