"""Losses and gradients of a cross-layer transcoder in a real model, against their definition in float64, dense."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import nestcoder
from cache.open import open_cache
from evaluate.spliced.splicer import open_splicer
from finetune.contexts import TrainText
from finetune.in_model import CrossLayerInModel
from finetune.objective import Objective
from transcoder.cross_layer import CrossLayerTranscoder

MODEL = Path(__file__).parents[2] / "models" / "gpt2-stdlib"
LAYERS = (4, 6, 8)


@pytest.fixture(scope="module")
def objective(trained: Path) -> tuple[Objective, TrainText]:
    base = trained / "gpt2-stdlib"
    readers = {layer: open_cache(base / f"layer0{layer}" / "cache") for layer in LAYERS}
    dictionary = nestcoder.load_cross_layer(base / "layers04_06_08" / "transcoder" / "clt").requires_grad_()
    variances = {layer: reader.statistics.target.variance_sum for layer, reader in readers.items()}
    splicer = open_splicer(str(MODEL), readers, device="cpu")
    return Objective(splicer, CrossLayerInModel(dictionary), variances, seed=3), TrainText.from_reader(readers[4])


class Dense:
    """The definition: every target is a sum over the layers before it, with dense codes."""

    def __init__(self, dictionary: CrossLayerTranscoder) -> None:
        self.numbers = {layer: number for number, layer in enumerate(dictionary.layers)}
        self.pieces = [dictionary.piece(number) for number in range(len(LAYERS))]
        self.arrays = [
            {name: array.detach().double().requires_grad_() for name, array in piece.arrays().items()}
            for piece in self.pieces
        ]
        self.width = dictionary.d_target
        self.codes: dict[int, Tensor] = {}

    def target(self, layer: int, source: Tensor, *, prefix: int) -> Tensor:
        """Layers come in order; what earlier ones read is remembered."""
        t = self.numbers[layer]
        weights = self.arrays[t]
        pre = source @ weights["W_enc"].T + weights["b_enc"]
        threshold = pre.topk(self.pieces[t].top_k or 0, dim=1).values[:, -1:]
        self.codes[t] = pre.relu() * (pre >= threshold)
        found = weights["b_dec"][: self.width] + source @ weights["W_skip"]
        for s in range(t + 1):
            block = self.arrays[s]["W_dec"][:, (t - s) * self.width : (t - s + 1) * self.width]
            if block.numel():  # nothing beyond the window
                found = found + self.codes[s][:, :prefix] @ block[:prefix]
        return found


def run(hugging: Any, contexts: Any, ordinary: Tensor, change: Any) -> Tensor:
    """The model's log-probabilities with ``change(layer, source, target)`` as its MLPs at ordinary tokens."""

    def hook(layer: int) -> Any:
        def replace(_: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
            changed = out.clone()
            changed[ordinary] = change(layer, args[0][ordinary], out[ordinary])
            return changed

        return replace

    handles = [hugging.transformer.h[layer].mlp.register_forward_hook(hook(layer)) for layer in LAYERS]
    logits = hugging(input_ids=contexts.tokens, position_ids=contexts.positions).logits
    for handle in handles:
        handle.remove()
    return logits.log_softmax(-1)[ordinary]


@pytest.mark.parametrize("step", [0, 1, 2])
def test_losses_and_gradients_are_those_of_the_definition(objective: tuple[Objective, TrainText], step: int) -> None:
    made, text = objective
    assert isinstance(made.dictionaries, CrossLayerInModel)
    contexts = text.batch(step, contexts=2, seed=0, device="cpu")
    ordinary = ~torch.isin(contexts.tokens, torch.tensor(made.splicer.special_ids))
    hugging = deepcopy(made.splicer.model.hugging).double()
    found = made.measure(contexts, step)

    dense = Dense(made.dictionaries.dictionary)
    prefixes = made.dictionaries.dictionary.prefixes
    sides: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(layer: int, source: Tensor, own: Tensor) -> Tensor:
        sides[layer] = (source.detach(), own.detach())
        return own

    clean = run(hugging, contexts, ordinary, keep).detach()
    errors = [
        (dense.target(layer, source, prefix=prefix) - target).square().sum(1).mean() / made.variances[layer]
        for prefix in prefixes
        for layer, (source, target) in sides.items()
    ]
    fvu = torch.stack(errors).mean()
    prefix = prefixes[found.prefix]
    spliced = run(hugging, contexts, ordinary, lambda layer, source, _: dense.target(layer, source, prefix=prefix))
    kl = (clean.exp() * (clean - spliced)).sum(-1).mean()

    assert found.fvu == pytest.approx(float(fvu.detach()), rel=1e-5)
    assert found.kl == pytest.approx(float(kl.detach()), rel=1e-4)
    for loss, gradients in ((fvu, found.gradients_fvu), (kl, found.gradients_kl)):
        for number, layer in enumerate(LAYERS):
            arrays = dense.arrays[number]
            expected = torch.autograd.grad(loss, list(arrays.values()), retain_graph=True, allow_unused=True)
            for name, own in zip(arrays, expected, strict=True):
                assert own is not None
                scale = float(own.abs().max())
                torch.testing.assert_close(gradients[layer][name].double(), own, rtol=1e-2, atol=1e-4 * scale)
                assert scale > 0


def test_nothing_is_written_into_the_bias_of_another_layer(objective: tuple[Objective, TrainText]) -> None:
    made, text = objective
    found = made.measure(text.batch(0, contexts=1, seed=0, device="cpu"), 0)
    for gradients in (found.gradients_kl, found.gradients_fvu):
        assert not gradients[4]["b_dec"][made.dictionaries.pieces[8].d_target :].any()
