"""A model on several cards: which block is on which card, and that no code on the way assumes one device."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import dispatch_model

from common.errors import CapacityError
from common.progress import Silent
from evaluate.spliced.contexts import Contexts
from evaluate.spliced.replace import MLP
from evaluate.spliced.splicer import Splicer
from harvest.batch import BatchForward
from harvest.config import HarvestSettings
from harvest.memory import weight_bytes
from harvest.model.forward import Key, run_modules
from harvest.model.language_model import boot_bridge, load_model
from harvest.model.placement import in_words, place_blocks, spread
from harvest.model.proof import ALONE, prove_sites
from harvest.model.source import find_model
from harvest.text.tokens import ContextBatch
from tests.harvest.model import cards

LAYER = 2
FLOAT = torch.float32


def over_two(source, share=0.75):
    """The first three blocks over two cards that each have room for ``share`` of the weights."""
    budget = int(weight_bytes(source, FLOAT, layers=LAYER + 1) * share)
    return spread(source, source.config_up_to(LAYER), FLOAT, budgets={"cuda:0": budget, "cuda:1": budget})


def test_every_weight_has_a_card_within_the_budget(model_folder):
    source = find_model(str(model_folder))
    placed, bytes_on = over_two(source), {"cuda:0": 0, "cuda:1": 0}
    for name, parameter in load_model(str(model_folder), device="cpu", last_layer=LAYER).hugging.named_parameters():
        (path,) = (path for path in placed if name.startswith(f"{path}."))
        bytes_on[placed[path]] += parameter.nbytes
    total = weight_bytes(source, FLOAT, layers=LAYER + 1)
    assert sum(bytes_on.values()) == total
    assert all(0 < size <= 0.75 * total for size in bytes_on.values())


def test_consecutive_blocks_share_a_card_evenly_and_the_final_norm_is_with_the_last(model_folder):
    source = find_model(str(model_folder))
    tenth = weight_bytes(source, FLOAT) // 10
    budgets = {f"cuda:{card}": 9 * tenth for card in range(3)}
    placed = spread(source, source.config, FLOAT, budgets=budgets)
    path = source.family.blocks
    blocks = [placed[f"{path}.{block}"] for block in range(4)]
    assert blocks == sorted(blocks)
    assert len(set(blocks)) > 1, "room for all on the first card is no reason to fill it first"
    final = next(name for name in placed if re.search(r"ln_f$|model\.norm$", name))
    assert placed[final] == blocks[-1]
    assert in_words(placed, source, device=torch.device("cpu"), layers=4)[0].startswith("blocks 0 to ")
    assert in_words(None, source, device=torch.device("cpu"), layers=3) == ["blocks 0 to 2 on cpu"]


def test_too_little_memory_on_all_cards_is_refused(model_folder):
    with pytest.raises(CapacityError, match="are free on cuda:0 and cuda:1"):
        over_two(find_model(str(model_folder)), share=0.3)


def machine(monkeypatch, free):
    """A machine whose cards have so many free bytes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(free))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr("harvest.model.placement.free_memory", lambda device: free[device.index or 0])


def test_auto_alone_takes_several_cards_and_only_when_one_is_too_small(model_folder, monkeypatch):
    source = find_model(str(model_folder))
    weights = weight_bytes(source, FLOAT)
    machine(monkeypatch, [2 * weights, 2 * weights])
    assert place_blocks(source, source.config, FLOAT, device="auto") is None
    machine(monkeypatch, [weights, weights])
    placed = place_blocks(source, source.config, FLOAT, device="auto")
    assert placed is not None
    assert set(placed.values()) == {"cuda:0", "cuda:1"}
    assert place_blocks(source, source.config, FLOAT, device="cuda:1") is None
    machine(monkeypatch, [weights // 4, weights // 4])
    with pytest.raises(CapacityError, match="are free on cuda:0 and cuda:1"):
        place_blocks(source, source.config, FLOAT, device="auto")
    with pytest.raises(CapacityError, match="are free on cuda:1"):
        place_blocks(source, source.config, FLOAT, device="cuda:1")


def test_hugging_face_loads_by_our_device_map(model_folder, monkeypatch):
    source = find_model(str(model_folder))
    # Two devices that exist everywhere; meta holds no numbers.
    wanted = {path: {"cuda:0": "cpu", "cuda:1": "meta"}[device] for path, device in over_two(source).items()}
    monkeypatch.setattr("harvest.model.language_model.place_blocks", lambda *_, **__: wanted)
    assert load_model(str(model_folder), device="cpu", last_layer=LAYER).hugging.hf_device_map == wanted


def some_tokens(model):
    drawn = torch.randint(3, 200, (2, 40), generator=torch.Generator().manual_seed(0))
    drawn[:, 0] = model.tokenizer.bos
    return drawn


def on_cards(model, placed):
    """The model with its weights on the cards of a map, and accelerate's hooks that carry tensors between them."""
    for path, device in placed.items():
        module = model.hugging.get_submodule(path)
        for tensor in (*module.parameters(), *module.buffers()):
            cards.put(tensor, device)
    dispatch_model(model.hugging, device_map=placed, main_device="cuda:0", force_hooks=True)
    return replace(model, device=torch.device("cuda:0"))


def test_sites_and_proof_of_a_model_on_two_cards_are_those_of_one(model_folder):
    model = load_model(str(model_folder), device="cpu", last_layer=LAYER)
    tokens = some_tokens(model)
    keys: list[Key] = [(layer, site) for layer in (0, LAYER) for site in model.family.ends]
    alone = run_modules(model, tokens, keys=keys)
    with cards.Cards():
        spread_out = on_cards(model, over_two(model.source))
        assert {str(device) for device in spread_out.devices} == {"cuda:0", "cuda:1"}
        there = tokens.to(spread_out.device)
        found = run_modules(spread_out, there, keys=keys)
        assert [cards.card_of(found[layer, "mlp_out"]).index for layer in (0, LAYER)] == [0, 1]
        proofs = prove_sites(
            spread_out, boot_bridge(spread_out), there, layers=[0, LAYER], sites=["mlp_in"], within_documents=True
        )
    assert all(torch.equal(found[key], alone[key]) for key in keys)
    for proof in proofs:
        proof.require()
        assert ALONE in proof.errors


def test_a_batch_with_padding_runs_on_two_cards(model_folder):
    model = load_model(str(model_folder), device="cpu", last_layer=LAYER)
    tokens = some_tokens(model).numpy()
    batch = ContextBatch(
        tokens=tokens, documents=tokens, kept=np.arange(40) < np.array([[40], [17]]),
        document_positions=np.tile(np.arange(40), (2, 1)), held_out=False, cursor=None,
    )  # fmt: skip
    keys: list[Key] = [(0, "mlp_in"), (LAYER, "mlp_out")]
    settings = HarvestSettings(attention="document")
    alone = BatchForward(model, settings, keys).run(batch, Silent())
    with cards.Cards():
        # Without the last step, which copies from real cards.
        rows = BatchForward(on_cards(model, over_two(model.source)), settings, keys)._forward(batch, 0, 2)
    assert [cards.card_of(rows[key]).index for key in keys] == [0, 1]
    for layer, site in keys:
        assert len(rows[layer, site]) == 57
        assert torch.equal(rows[layer, site], alone.site(layer, site))


def test_a_splice_into_a_model_on_two_cards_is_one_into_one(model_folder):
    model = load_model(str(model_folder), device="cpu", last_layer=LAYER)
    tokens = some_tokens(model)
    contexts = Contexts(tokens, torch.arange(40).expand(2, -1), torch.zeros_like(tokens))

    def begun(splicer, contexts):
        clean, before = splicer.clean(contexts)
        return clean, splicer.log_probabilities(contexts, {LAYER: lambda _, own: torch.zeros_like(own)}, before=before)

    alone = begun(Splicer(model, {LAYER: MLP}, model.tokenizer.special_ids), contexts)
    with cards.Cards():
        spread_out = on_cards(model, over_two(model.source))
        there = Contexts(*(each.to(spread_out.device) for each in vars(contexts).values()))
        splicer = Splicer(spread_out, {LAYER: MLP}, model.tokenizer.special_ids)
        found = begun(splicer, there)
        assert torch.equal(splicer.log_probabilities(there), found[0])
    assert all(torch.equal(split, single) for split, single in zip(found, alone, strict=True))
