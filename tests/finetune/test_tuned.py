"""Training units and back; an update keeps rows at norm 1, for one layer's dictionary and a piece of several."""

from pathlib import Path

import pytest
import torch

import nestcoder
from cache.open import open_cache
from common.errors import UsageError
from finetune.tuned import Tuned, factors_of_layer, factors_of_piece, kept_of_config
from train.config import TrainSettings
from train.resolved import resolve

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


def test_rows_of_another_norm_are_refused(trained: Path) -> None:
    piece = begin(trained, "layer")
    with pytest.raises(UsageError, match="do not have norm 1"):
        Tuned.begin(piece.transcoder.replaced(W_dec=2 * piece.transcoder.W_dec.detach()), piece.factors)


def test_fields_about_the_old_file_are_left_out_of_the_config() -> None:
    assert kept_of_config({"weights": {}, "seal": "x", "dead": 0.1, "layer": 8}) == {"layer": 8}
