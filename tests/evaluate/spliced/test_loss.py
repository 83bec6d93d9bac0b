"""The loss of a model with a dictionary in it, against the definition; a dictionary that is the MLP costs nothing."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.utils.hooks import RemovableHandle

from cache.reader import CacheReader
from evaluate.config import EvaluateSettings
from evaluate.spliced.contexts import Contexts, held_out_contexts
from evaluate.spliced.loss import _measure, _sums
from evaluate.spliced.splicer import Splicer
from harvest.model.language_model import LanguageModel
from harvest.model.sites import module_at
from tests.helpers.evaluation import evaluate
from transcoder.formats.native import save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

LAYER, WIDTH = 1, 64


def test_a_transcoder_that_is_the_mlp_costs_nothing(
    relu_model: tuple[Path, LanguageModel, Path], tmp_path: Path
) -> None:
    """An MLP with ReLU is a transcoder all of whose features may fire."""
    folder, model, cache = relu_model
    mlp = model.block(LAYER).mlp
    arrays = (mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight, mlp.c_proj.bias)
    W_enc, *others = (array.detach().clone() for array in arrays)
    transcoder = Transcoder(W_enc.T.contiguous(), *others, rule=TopK(256), prefixes=(128, 256))
    save_transcoder(transcoder, tmp_path / "main", config={})
    metrics = evaluate(cache, tmp_path / "main", tmp_path / "report", lm=str(folder))
    half, complete = metrics["language_model"]["per_prefix"]
    assert metrics["fvu"] < 1e-9
    assert abs(complete["delta"]) < 1e-6
    assert abs(complete["kl"]) < 1e-6 < 1e-4 < half["kl"]


def test_the_stage_gives_the_numbers_of_the_definition(
    small_folder: Path, small_cache: Path, small_splicer: Splicer, tmp_path: Path
) -> None:
    arrays = random_arrays(WIDTH, WIDTH, dict_size=96, seed=0)
    transcoder = Transcoder(**arrays, rule=TopK(8), prefixes=(32, 96))
    save_transcoder(transcoder, tmp_path / "main", config={})
    found = evaluate(small_cache, tmp_path / "main", tmp_path / "report", lm=str(small_folder), bootstrap=20)
    metrics = found["language_model"]
    short = {LAYER: lambda x, _: transcoder.forward(x, prefix=32)}
    clean, replaced, kl, top1 = [], [], [], []
    for context in held_out_contexts(CacheReader.open(small_cache), tokens=10_000, batch_tokens=1, device="cpu"):
        counted = ~small_splicer.kept(context.tokens)[0, :-1]
        own = small_splicer.log_probabilities(context)[0, :-1][counted]
        spliced = small_splicer.log_probabilities(context, short)[0, :-1][counted]
        following = context.tokens[0, 1:][counted][:, None]
        clean.append(-own.gather(1, following))
        replaced.append(-spliced.gather(1, following))
        kl.append((own.exp() * (own - spliced)).sum(1))
        top1.append((own.argmax(1) == spliced.argmax(1)).float())
    first = metrics["per_prefix"][0]
    assert metrics["tokens"] == sum(map(len, clean))
    assert metrics["clean"] == pytest.approx(float(torch.cat(clean).mean()), rel=1e-5)
    assert first["delta"] == pytest.approx(float(torch.cat(replaced).mean() - torch.cat(clean).mean()), abs=1e-5)
    assert first["kl"] == pytest.approx(float(torch.cat(kl).mean()), abs=1e-5)
    assert first["top1"] == pytest.approx(float(torch.cat(top1).mean()), abs=1e-6)
    low, high = first["delta_interval"]
    assert low < first["delta"] < high
    assert metrics["zero"]["cross_entropy"] == pytest.approx(metrics["clean"] + metrics["zero"]["delta"])
    for ablation in ("zero", "mean"):
        cost = metrics[ablation]["delta"]
        expected = pytest.approx((cost - first["delta"]) / cost) if cost > 0 else None
        assert first[f"recovered_{ablation}"] == expected
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
    for name in (*metrics, *(f"per_prefix[].{name}" for name in first)):
        assert f"`language_model.{name}" in page
    assert "Spliced into the language model" in (tmp_path / "report" / "summary.txt").read_text()


def test_the_blocks_before_the_layer_run_once_for_all_replacements(
    small_splicer: Splicer, small_context: Contexts
) -> None:
    model = small_splicer.model
    calls: Counter[int] = Counter()

    def count(block: int) -> RemovableHandle:
        mlp = module_at(model.block(block), model.family.mlp)
        return mlp.register_forward_hook(lambda *_: calls.update([block]))

    handles = [count(block) for block in (0, model.last_layer)]
    removed = {LAYER: lambda _, own: torch.zeros_like(own)}
    sums = _sums(3, EvaluateSettings(bootstrap=0), model.device)
    try:
        _measure(small_splicer, small_context, [removed] * 3, sums)
    finally:
        for handle in handles:
            handle.remove()
    assert calls == {0: 1, model.last_layer: 4}
