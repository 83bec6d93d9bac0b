"""Screening selects what the rule selects from all pre-activations; its bounds are right for any numbers."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.arrays.parameters import Parameters, random_parameters
from transcoder import prefilter as screen
from transcoder.prefilter import Prefilter, prefilter_of
from transcoder.rules.batchtopk import BatchTopK
from transcoder.rules.relu import ReLU
from transcoder.rules.rule import Rule
from transcoder.rules.threshold import JumpReLU, select_above
from transcoder.rules.topk import TopK, select_topk
from transcoder.sparse_code import SparseCode
from transcoder.transcoder import Transcoder

D_SOURCE, DICT_SIZE, ROWS = 24, 512, 40


def encoder(*, seed: int, unlike: float, biased: float) -> Parameters:
    """Features whose norms differ by up to e^unlike, with biases; some repeat others, some never fire, one is 0."""
    generator = torch.Generator().manual_seed(seed)
    weights = random_parameters(D_SOURCE, 4, dict_size=DICT_SIZE, seed=seed)
    weights.W_enc.mul_((unlike * torch.randn(DICT_SIZE, 1, generator=generator)).exp())
    weights.b_enc.normal_(std=biased, generator=generator)
    weights.W_enc[100:120], weights.b_enc[100:120] = weights.W_enc[:20], weights.b_enc[:20]
    weights.W_enc[200], weights.b_enc[300:310] = 0, -1e6
    return weights


def rows_of(*, seed: int, scale: float) -> torch.Tensor:
    source = scale * torch.randn(ROWS, D_SOURCE, generator=torch.Generator().manual_seed(seed))
    source[0], source[1, 0] = 0, 100 * scale
    return source.bfloat16()


def thresholds(seed: int) -> JumpReLU:
    return JumpReLU(torch.randn(DICT_SIZE, generator=torch.Generator().manual_seed(seed)).mul(3))


def pre_activations(weights: Parameters, source: torch.Tensor) -> torch.Tensor:
    return source.double() @ weights.W_enc.double().T + weights.b_enc.double()


hostile = given(
    seed=st.integers(0, 99),
    unlike=st.sampled_from([0.0, 1.0, 4.0]),
    biased=st.sampled_from([0.0, 1.0, 100.0]),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
)


@hostile
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("top_k", [1, 7, 16])
def test_every_feature_of_the_top_k_is_found(top_k: int, seed: int, unlike: float, biased: float, scale: float) -> None:
    weights, source = encoder(seed=seed, unlike=unlike, biased=biased), rows_of(seed=seed, scale=scale)
    found = Prefilter.from_encoder(weights.W_enc, weights.b_enc, TopK(top_k)).select(source).dense(DICT_SIZE)
    pre = pre_activations(weights, source)
    expected = pre.topk(top_k, dim=1).values.relu()
    size = source.double().norm(dim=1, keepdim=True) * weights.W_enc.norm(dim=1).max() + weights.b_enc.abs().max()
    assert ((found > 0).sum(1) <= top_k).all()
    # The same values: if two features are equal in float32, either may be selected.
    assert ((found.topk(top_k, dim=1).values - expected).abs() <= 1e-6 * size).all()
    assert ((found - pre).abs() * (found > 0) <= 1e-6 * size).all()


@hostile
@settings(max_examples=25, deadline=None)
def test_what_exceeds_its_threshold_is_found(seed: int, unlike: float, biased: float, scale: float) -> None:
    weights, source = encoder(seed=seed, unlike=unlike, biased=biased), rows_of(seed=seed, scale=scale)
    rule = thresholds(seed)
    found = Prefilter.from_encoder(weights.W_enc, weights.b_enc, rule).select(source).dense(DICT_SIZE)
    pre = pre_activations(weights, source)
    size = source.double().norm(dim=1, keepdim=True) * weights.W_enc.norm(dim=1) + weights.b_enc.abs() + rule.threshold
    clear = (pre - rule.threshold).abs() > 1e-6 * size
    assert torch.equal((found > 0)[clear], (pre > rule.threshold)[clear])
    assert ((found - pre).abs() * (found > 0) <= 1e-6 * size).all()


@hostile
@settings(max_examples=25, deadline=None)
def test_bounds_are_right_and_as_close_as_stated(seed: int, unlike: float, biased: float, scale: float) -> None:
    weights, source = encoder(seed=seed, unlike=unlike, biased=biased), rows_of(seed=seed, scale=scale)
    rule = thresholds(seed)
    made = Prefilter.from_encoder(weights.W_enc, weights.b_enc, rule)
    r, first, second = made.columns[:, D_SOURCE:].double().T
    norm = source.double().norm(dim=1, keepdim=True)
    bound = source.double() @ made.columns[:, :D_SOURCE].double().T + norm * r + first + second
    excess = bound - (pre_activations(weights, source) - rule.threshold)
    chunk = torch.arange(DICT_SIZE) % (DICT_SIZE // 16)
    assert (excess >= 0).all()
    assert (excess <= 2 * (norm * made.spread[chunk] + made.slack[chunk])).all()


@pytest.mark.parametrize("rule", [TopK(8), thresholds(3)])
def test_stored_rows_and_float32_rows_give_the_same_selection(monkeypatch: pytest.MonkeyPatch, rule: Rule) -> None:
    """A dictionary screens rows in bfloat16 if that is faster, in blocks of any size."""
    monkeypatch.setattr(screen, "_MIN_DICT_SIZE", DICT_SIZE)
    monkeypatch.setattr(screen, "_multiplies_bfloat16", lambda: True)
    weights = random_parameters(D_SOURCE, 4, dict_size=DICT_SIZE, seed=1)
    dictionary = Transcoder(**weights.tensors(), rule=rule, prefixes=(100, DICT_SIZE))
    source = rows_of(seed=1, scale=1.0).repeat(30, 1)
    assert prefilter_of(dictionary.W_enc, dictionary.b_enc, rule)
    stored, plain = (dictionary.sparse_code(rows).dense(DICT_SIZE) for rows in (source, source.float()))
    torch.testing.assert_close(stored, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "rule"),
    [
        (random_parameters(4, 4, dict_size=512), TopK(4)),
        (random_parameters(4, 4, dict_size=4100), TopK(4)),
        (random_parameters(4, 4, dict_size=4096, dtype=torch.float64), TopK(4)),
        (random_parameters(4, 4, dict_size=4096), TopK(200)),
        (random_parameters(4, 4, dict_size=4096), BatchTopK(4)),
    ],
)
def test_there_is_no_screen_if_it_would_not_be_faster(weights: Parameters, rule: Any) -> None:
    assert prefilter_of(weights.W_enc, weights.b_enc, rule) is None


def test_rules_select_as_training_does() -> None:
    pre = torch.randn(30, 64, generator=torch.Generator().manual_seed(0))
    for rule, expected in (
        (TopK(5), select_topk(pre, top_k=5)),
        (JumpReLU(torch.full((64,), 0.4)), select_above(pre, 0.4)),
        (JumpReLU(torch.full((64,), -1.0)), select_above(pre, 0.0)),
        (BatchTopK(3, threshold=0.4), select_above(pre, 0.4)),
        (ReLU(), select_above(pre, 0.0)),
    ):
        torch.testing.assert_close(rule(pre).dense(64), expected.dense(64))
        everything = SparseCode(pre.flatten(), torch.arange(64).repeat(30).int(), torch.arange(0, 1921, 64).int())
        torch.testing.assert_close(rule.among(everything).dense(64), expected.dense(64))
