"""The language model's own loss against its definition in float64, on the whole model, and its warning."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from harvest.model.language_model import load_model
from harvest.model.own_loss import OwnLoss, measure_own_loss, unigram_entropy
from harvest.text.tokens import ContextBatch


def batch_of(tokens, kept=None):
    kept = np.ones_like(tokens, dtype=np.bool_) if kept is None else kept
    positions = np.tile(np.arange(tokens.shape[1]), (len(tokens), 1))
    return ContextBatch(
        tokens=tokens, documents=np.zeros_like(tokens), kept=kept, document_positions=positions, held_out=False,
        cursor=None,
    )  # fmt: skip


def drawn(bos, contexts=8, length=24):
    tokens = np.random.default_rng(0).integers(3, 200, (contexts, length))
    tokens[:, 0] = bos
    tokens[-1, 5] = bos  # a document's beginning inside a context is no target
    return tokens


def test_it_is_the_mean_of_minus_log_p_over_ordinary_tokens(model_folder):
    model = load_model(str(model_folder), device="cpu")
    tokens = drawn(model.tokenizer.bos)
    found = measure_own_loss(model, batch_of(tokens), planned_contexts=400)

    plain = AutoModelForCausalLM.from_pretrained(model_folder).double().eval()
    sums = {"first": [0.0, 0], "sampled": [0.0, 0]}
    for context, name in ((0, "first"), (1, "sampled"), (4, "sampled"), (7, "sampled")):
        with torch.inference_mode():
            p = torch.softmax(plain(torch.from_numpy(tokens[context])[None]).logits[0], dim=-1)
        for pos in range(1, tokens.shape[1]):
            if tokens[context, pos] not in model.tokenizer.special_ids:
                sums[name][0] -= float(torch.log(p[pos - 1, tokens[context, pos]]))
                sums[name][1] += 1
    assert found.first == pytest.approx(sums["first"][0] / sums["first"][1], rel=1e-5)
    assert found.sampled == pytest.approx(sums["sampled"][0] / sums["sampled"][1], rel=1e-5)
    assert found.predicted_tokens == sums["first"][1] + sums["sampled"][1]


def test_a_model_that_is_cut_afterwards_computes_what_a_short_one_does(model_folder):
    model = load_model(str(model_folder), device="cpu")
    model.cut(1)
    short = load_model(str(model_folder), device="cpu", last_layer=1)
    assert model.last_layer == short.last_layer == 1
    assert sum(p.numel() for p in model.hugging.parameters()) == sum(p.numel() for p in short.hugging.parameters())
    tokens = torch.from_numpy(drawn(model.tokenizer.bos))
    with torch.inference_mode():
        cut_logits, short_logits = (
            loaded.hugging(input_ids=tokens, use_cache=False).logits for loaded in (model, short)
        )
    assert torch.equal(cut_logits, short_logits)


def test_the_unigram_model_is_the_entropy_of_the_frequencies():
    tokens = np.array([7, 7, 7, 9])
    assert unigram_entropy(tokens) == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert unigram_entropy(tokens[:0]) == 0.0


def test_rows_that_are_not_kept_are_not_predicted(model_folders):
    model = load_model(str(model_folders["gpt2"]), device="cpu")
    tokens = drawn(model.tokenizer.bos, contexts=2)
    kept = np.arange(24) < np.array([[24], [10]])
    assert measure_own_loss(model, batch_of(tokens, kept), planned_contexts=1).predicted_tokens == 23 + 9 - 1


@pytest.mark.parametrize(
    ("loss", "tokens", "poor"), [(6.0, 9000, False), (6.6, 9000, True), (float("nan"), 9000, True), (9.0, 100, False)]
)
def test_a_model_that_predicts_no_better_than_frequencies_is_warned_of(loss, tokens, poor):
    measured = OwnLoss(first=loss, sampled=loss, unigram=6.5, predicted_tokens=100, counted_tokens=tokens)
    assert measured.is_poor == poor
    assert any("Warning" in line for line in measured.lines()) == poor
