"""Training units and back; an update keeps rows at norm 1, for one layer's dictionary and a piece of several."""

from pathlib import Path

import pytest
import torch

import nestcoder
from cache.open import open_cache
from finetune.tuned import Tuned, factors_of_layer, factors_of_piece, kept_of_config
from train.config import TrainSettings
from train.resolved import resolve
from transcoder.rules.threshold import JumpReLU
from transcoder.transcoder import Transcoder

LAYERS = (4, 6, 8)


def begin(runs: Path, which: str) -> Tuned:
    base = runs / "gpt2-stdlib"
    readers = [open_cache(base / f"layer0{layer}" / "cache") for layer in LAYERS]
    if which == "layer":
        piece = nestcoder.load_transcoder(base / "layer08" / "transcoder" / "main")
        return Tuned.begin(piece, factors_of_layer(piece, readers[2]))
    dictionary = nestcoder.load_cross_layer(base / "layers04_06_08" / "transcoder" / "clt")
    return Tuned.begin(dictionary.piece(0), factors_of_piece(dictionary, 0, readers))


@pytest.mark.parametrize("which", ["layer", "piece"])
def test_gradients_follow_the_units(trained: Path, which: str) -> None:
    """dL/dW' of L = f(factor * W'), against autograd; the decoder's without its component along each row."""
    piece = begin(trained, which)
    source = torch.randn(20, 96, generator=torch.Generator().manual_seed(0))
    loss = piece.transcoder.reconstructions(source).square().sum()
    arrays = piece.transcoder.arrays()
    gradients = dict(zip(arrays, torch.autograd.grad(loss, list(arrays.values())), strict=True))
    found = piece.in_training_units(gradients)
    weights = {name: array.clone().requires_grad_() for name, array in piece.weights.tensors().items()}
    scaled = {name: array * piece.factors[name] for name, array in weights.items()}
    shortest = {"prefix": piece.transcoder.prefixes[0]}
    of_prefix = torch.func.functional_call(piece.transcoder, scaled, (source,), shortest)
    of_all = torch.func.functional_call(piece.transcoder, scaled, (source,))
    expected_loss = of_prefix.square().sum() + of_all.square().sum()
    own = dict(zip(weights, torch.autograd.grad(expected_loss, list(weights.values())), strict=True))
    unit = weights["W_dec"].detach()
    own["W_dec"] = own["W_dec"] - unit * (own["W_dec"] * unit).sum(dim=1, keepdim=True)
    for name, expected in own.items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(found[name], expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("which", ["layer", "piece"])
def test_an_update_keeps_rows_at_norm_one(trained: Path, which: str) -> None:
    piece = begin(trained, which)
    before = piece.transcoder.W_dec.detach().clone()
    gradients = {name: torch.ones_like(array) for name, array in piece.weights.tensors().items()}
    settings = resolve(TrainSettings(prefixes=(16, 64), top_k=1, steps=4, lr=0.01), model="", d_target=96)
    piece.update(gradients, settings=settings, step=3)
    torch.testing.assert_close(piece.weights.W_dec.norm(dim=1), torch.ones(64), atol=1e-5, rtol=0)
    torch.testing.assert_close(piece.transcoder.W_dec.detach(), piece.weights.W_dec * piece.factors["W_dec"])
    assert not torch.equal(piece.transcoder.W_dec, before)


def in_other_units(transcoder: Transcoder, norms: torch.Tensor) -> Transcoder:
    """The same dictionary with features that fire ``1 / norms`` times as strongly and write so much more."""
    assert isinstance(transcoder.rule, JumpReLU)
    return transcoder.replaced(
        W_enc=transcoder.W_enc.detach() / norms[:, None],
        b_enc=transcoder.b_enc.detach() / norms,
        W_dec=transcoder.W_dec.detach() * norms[:, None],
        rule=JumpReLU(transcoder.rule.threshold / norms),
    )


@pytest.mark.parametrize("which", ["layer", "piece"])
def test_rows_of_other_norms_are_tuned_like_those_of_norm_1(trained: Path, which: str) -> None:
    """Three updates of one dictionary in two units: the same outputs, and norms that do not change."""
    plain = begin(trained, which)
    norms = torch.linspace(0.3, 3, 64)
    own = plain.transcoder.replaced(rule=JumpReLU(torch.full((64,), 0.1)))
    plain, rescaled = (Tuned.begin(start, plain.factors) for start in (own, in_other_units(own, norms)))
    source = torch.randn(40, 96, generator=torch.Generator().manual_seed(0))
    settings = resolve(TrainSettings(prefixes=(16, 64), top_k=1, steps=4, lr=0.01), model="", d_target=96)
    first = own.reconstructions(source).detach()
    for step in range(3):
        for tuned in (plain, rescaled):
            loss = (tuned.transcoder.reconstructions(source) - 2 * first).square().sum()
            arrays = tuned.transcoder.arrays()
            gradients = dict(zip(arrays, torch.autograd.grad(loss, list(arrays.values())), strict=True))
            tuned.update(tuned.in_training_units(gradients), settings=settings, step=step)
    now = plain.transcoder.reconstructions(source).detach()
    scale = float(now.abs().max())
    assert float((now - first).abs().max()) > 1e-3 * scale
    torch.testing.assert_close(rescaled.transcoder.reconstructions(source).detach(), now, rtol=1e-3, atol=1e-4 * scale)
    rows = rescaled.transcoder.W_dec.detach() / plain.factors["W_dec"]
    torch.testing.assert_close(rows.norm(dim=1), norms, rtol=1e-4, atol=0)


def test_a_row_of_zeros_stays_one(trained: Path) -> None:
    tuned = begin(trained, "layer")
    written = 2 * tuned.transcoder.W_dec.detach()
    written[5] = 0
    start = tuned.transcoder.replaced(W_dec=written)
    tuned = Tuned.begin(start, tuned.factors)
    for name, array in start.arrays().items():
        torch.testing.assert_close(tuned.transcoder.arrays()[name].detach(), array.detach())
    gradients = {name: torch.ones_like(array) for name, array in tuned.transcoder.arrays().items()}
    settings = resolve(TrainSettings(prefixes=(16, 64), top_k=1, steps=4, lr=0.01), model="", d_target=96)
    tuned.update(tuned.in_training_units(gradients), settings=settings, step=3)
    assert not tuned.transcoder.W_dec[5].any()
    assert all(bool(array.isfinite().all()) for array in tuned.transcoder.arrays().values())


def test_fields_about_the_old_file_are_left_out_of_the_config() -> None:
    assert kept_of_config({"weights": {}, "seal": "x", "dead": 0.1, "layer": 8}) == {"layer": 8}
