"""The losses against their definitions, the gradients against autograd through ``nestcoder.splice``."""

from pathlib import Path

import pytest
import torch

import nestcoder
from cache.open import open_cache
from evaluate.spliced.splicer import open_splicer
from finetune.contexts import TrainText
from finetune.in_model import SetInModel
from finetune.objective import Balance, Objective


@pytest.fixture(scope="module")
def objective(trained: Path) -> tuple[Objective, TrainText]:
    base = trained / "gpt2-stdlib"
    readers = {layer: open_cache(base / f"layer0{layer}" / "cache") for layer in (4, 8)}
    model = str(Path(__file__).parents[2] / "models" / "gpt2-stdlib")
    transcoders = {
        layer: nestcoder.load_transcoder(base / f"layer0{layer}/transcoder/main").requires_grad_() for layer in (4, 8)
    }
    variances = {layer: reader.statistics.target.variance_sum for layer, reader in readers.items()}
    splicer = open_splicer(model, readers, device="cpu")
    return Objective(splicer, SetInModel(transcoders), variances, seed=3), TrainText.from_reader(readers[4])


@pytest.mark.parametrize("step", [0, 1, 2])
def test_losses_and_gradients_are_those_of_the_definition(objective: tuple[Objective, TrainText], step: int) -> None:
    made, text = objective
    contexts = text.batch(step, contexts=2, seed=0, device="cpu")
    found = made.measure(contexts, step)
    hugging = made.splicer.model.hugging
    ordinary = ~torch.isin(contexts.tokens, torch.tensor(made.splicer.special_ids))

    with nestcoder.splice(hugging, made.dictionaries.pieces, error_term=True, record=True) as seen, torch.no_grad():
        clean = hugging(input_ids=contexts.tokens).logits.log_softmax(-1)
    sources: dict[int, torch.Tensor] = {}
    handles = [
        hugging.transformer.h[layer].mlp.register_forward_pre_hook(
            lambda _, args, layer=layer: sources.__setitem__(layer, args[0][ordinary].detach())
        )
        for layer in (4, 8)
    ]
    with torch.no_grad():
        hugging(input_ids=contexts.tokens)
    for handle in handles:
        handle.remove()
    fvu = torch.zeros(())
    for layer, transcoder in made.dictionaries.pieces.items():
        target = seen[layer].error + transcoder.forward(sources[layer]).detach()
        for prefix in transcoder.prefixes:
            squared = (transcoder.forward(sources[layer], prefix=prefix) - target).square().sum(1).mean()
            fvu = fvu + squared / made.variances[layer] / 2 / 2
    prefix = made.dictionaries.pieces[4].prefixes[found.prefix]
    with nestcoder.splice(hugging, made.dictionaries.pieces, prefix=prefix):
        spliced = hugging(input_ids=contexts.tokens).logits.log_softmax(-1)
    kl = (clean.exp() * (clean - spliced)).sum(-1)[ordinary].mean()
    assert found.fvu == pytest.approx(float(fvu.detach()), rel=1e-4)
    assert found.kl == pytest.approx(float(kl.detach()), rel=1e-3, abs=1e-7)
    for loss, gradients in ((fvu, found.gradients_fvu), (kl, found.gradients_kl)):
        for layer, transcoder in made.dictionaries.pieces.items():
            arrays = transcoder.arrays()
            expected = torch.autograd.grad(loss, list(arrays.values()), retain_graph=True, allow_unused=True)
            for name, found_there in zip(arrays, expected, strict=True):
                own = torch.zeros_like(arrays[name]) if found_there is None else found_there
                scale = float(own.abs().max()) + 1e-9
                torch.testing.assert_close(gradients[layer][name], own, rtol=1e-2, atol=1e-3 * scale)


def test_every_prefix_has_a_gradient(objective: tuple[Objective, TrainText]) -> None:
    served = [objective[0].prefix_of(step) for step in range(400)]
    assert 150 < served.count(0) < 250
    assert set(served) == {0, 1}


def test_the_balance_gives_both_gradients_the_same_weight() -> None:
    balance = Balance()
    assert balance.add(kl=2.0, fvu=6.0) == pytest.approx(3.0)
    assert balance.add(kl=4.0, fvu=6.0) == pytest.approx(2.0)
    for _ in range(600):
        scale = balance.add(kl=1.0, fvu=10.0)
    assert scale == pytest.approx(10.0, rel=1e-2)
    assert Balance().add(kl=0.0, fvu=1.0) == 0.0, "a layer that is spliced without loss has no gradient to weigh"
