"""Splicing into both families: an exact copy loses nothing, ablations do what they say, special positions stay."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cache.reader import CacheReader
from common.errors import MismatchError, UsageError
from evaluate.spliced.contexts import Contexts
from evaluate.spliced.replace import MLP
from evaluate.spliced.splicer import Splicer, check_model
from harvest.model.forward import run_modules
from harvest.model.language_model import LanguageModel
from harvest.model.sites import module_at

LAYER = 1
ZERO = {LAYER: lambda _, own: torch.zeros_like(own)}


def own_mlp(model: LanguageModel) -> Any:
    family, block = model.family, model.block(LAYER)

    def replacement(source: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        out = module_at(block, family.mlp).forward(source)
        return module_at(block, family.post_norm).forward(out) if family.post_norm else out

    return replacement


def test_an_exact_copy_of_the_mlp_loses_nothing(small_splicer: Splicer, small_context: Contexts) -> None:
    copied = small_splicer.log_probabilities(small_context, {LAYER: own_mlp(small_splicer.model)})
    torch.testing.assert_close(copied, small_splicer.log_probabilities(small_context), atol=1e-5, rtol=0)


def test_clean_is_the_models_own_loss(small_splicer: Splicer, small_context: Contexts) -> None:
    expected = small_splicer.model.hugging(input_ids=small_context.tokens, labels=small_context.tokens).loss
    log_probabilities = small_splicer.log_probabilities(small_context)[:, :-1].gather(
        2, small_context.tokens[:, 1:, None]
    )
    assert -float(log_probabilities.mean()) == pytest.approx(float(expected), rel=1e-5)


def test_a_pass_from_the_layer_on_gives_what_the_full_pass_gives(
    small_splicer: Splicer, small_context: Contexts
) -> None:
    clean, before = small_splicer.clean(small_context)
    torch.testing.assert_close(clean, small_splicer.log_probabilities(small_context), atol=0, rtol=0)
    complete, continued = (
        small_splicer.log_probabilities(small_context, ZERO, before=known) for known in (None, before)
    )
    torch.testing.assert_close(continued, complete, atol=0, rtol=0)
    torch.testing.assert_close(small_splicer.log_probabilities(small_context), clean, atol=0, rtol=0)
    first = Splicer(small_splicer.model, {0: MLP}, small_splicer.special_ids)
    assert first.clean(small_context)[1] is None


def test_zero_changes_ordinary_positions_only(small_splicer: Splicer, small_context: Contexts) -> None:
    clean = small_splicer.log_probabilities(small_context)
    zero = small_splicer.log_probabilities(small_context, ZERO)
    assert float((clean[0, 0] - zero[0, 0]).abs().max()) < 1e-6
    assert float((clean[0, 1:] - zero[0, 1:]).abs().max()) > 1e-2
    everything = Splicer(small_splicer.model, {LAYER: MLP}, tuple(range(2048)))
    torch.testing.assert_close(everything.log_probabilities(small_context, ZERO), clean, atol=1e-6, rtol=0)


def test_zero_is_the_ablation_of_the_residual_contribution(small_splicer: Splicer, small_context: Contexts) -> None:
    model, ordinary = small_splicer.model, ~small_splicer.kept(small_context.tokens)
    before = run_modules(model, small_context.tokens, keys=[(LAYER, "resid_mid"), (LAYER, "mlp_out")])
    expected = before[LAYER, "resid_mid"] + before[LAYER, "mlp_out"] * ~ordinary[:, :, None]

    def ablate(_: Any, __: Any, output: Any) -> Any:
        return (expected, *output[1:]) if isinstance(output, tuple) else expected

    handle = model.block(LAYER).register_forward_hook(ablate)
    try:
        ablated = small_splicer.log_probabilities(small_context)
    finally:
        handle.remove()
    torch.testing.assert_close(small_splicer.log_probabilities(small_context, ZERO), ablated, atol=1e-5, rtol=0)


def test_another_model_or_site_is_refused(small_model: LanguageModel, small_cache: Path, toy_cache: Path) -> None:
    with pytest.raises(MismatchError, match="weights_hash"):
        check_model(small_model, CacheReader.open(toy_cache))
    reader = CacheReader.open(small_cache)
    reader.identity["source_site"] = "hook_z"
    with pytest.raises(UsageError, match="'hook_z' is not a site of a language model"):
        check_model(small_model, reader)
