"""The sites against independent plain Hugging Face hooks, for both families, in float32 and bfloat16."""

import pytest
import torch

from common.errors import MismatchError
from harvest.model.forward import Key, run_bridge, run_modules
from harvest.model.language_model import boot_bridge, load_model
from harvest.model.proof import relative_error
from harvest.model.sites import HOOKS

LAYER = 2
SITES = tuple(HOOKS)


@pytest.mark.parametrize("site", SITES)
def test_a_site_is_what_plain_hooks_see(model_folder, family, dtype, site, tokens, oracle):
    model = load_model(str(model_folder), device="cpu", dtype=dtype, last_layer=LAYER)
    batch = tokens(model)
    ours = run_modules(model, batch, keys=[(LAYER, site)])[LAYER, site]
    expected = oracle(model_folder, family, dtype, batch)[site]
    if site == "ln2_normalized":
        # The oracle divides a rounded mlp_in by the gain: exact up to that rounding.
        assert relative_error(ours.flatten(0, 1), expected.flatten(0, 1)) < (1e-5 if dtype == "float32" else 3e-2)
    else:
        assert torch.equal(ours, expected)


def test_every_site_equals_the_bridge(model_folder, family, dtype, tokens):
    model = load_model(str(model_folder), device="cpu", dtype=dtype, last_layer=LAYER)
    batch = tokens(model)
    keys: list[Key] = [(layer, site) for layer in (0, LAYER) for site in SITES]
    fast, plain = run_modules(model, batch, keys=keys), run_bridge(boot_bridge(model), batch, keys=keys)
    worst = max(relative_error(fast[key].flatten(0, 1), plain[key].flatten(0, 1)) for key in keys)
    assert worst < (1e-5 if dtype == "float32" else 3e-2)
    if family == "gemma2":
        assert worst == 0.0


def test_the_bridge_does_not_change_the_model_s_weights(model_folder, tokens):
    model = load_model(str(model_folder), device="cpu")
    before = {name: weight.clone() for name, weight in model.hugging.named_parameters()}
    bridge = boot_bridge(model)
    run_bridge(bridge, tokens(model), keys=[(1, "mlp_in")])
    after = dict(model.hugging.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_bridge_computes_logits_of_one_position_and_afterwards_of_all(model_folder, tokens):
    model = load_model(str(model_folder), device="cpu", last_layer=LAYER)
    bridge, batch = boot_bridge(model), tokens(model)
    shapes = []
    unembed = bridge.original_model.get_output_embeddings()
    unembed.register_forward_hook(lambda _, __, logits: shapes.append(tuple(logits.shape[:2])))
    run_bridge(bridge, batch, keys=[(LAYER, "mlp_in")])
    bridge(batch)
    assert shapes == [(len(batch), 1), tuple(batch.shape)]


def test_a_hook_that_yields_nothing_is_an_error(model_folders, monkeypatch, tokens):
    model = load_model(str(model_folders["gpt2"]), device="cpu", last_layer=LAYER)
    monkeypatch.setitem(HOOKS, "mlp_in", "blocks.{layer}.mlp.hook_nothing")
    with pytest.raises(MismatchError, match="gives no tensor for mlp_in of layer 2"):
        run_bridge(boot_bridge(model), tokens(model), keys=[(LAYER, "mlp_in"), (LAYER, "mlp_out")])
    with pytest.raises(MismatchError, match="gives no tensor"):
        run_bridge(boot_bridge(model), tokens(model), keys=[(LAYER, "mlp_in")])


def test_attention_within_documents_gives_what_each_document_alone_gives(model_folder, tokens):
    model = load_model(str(model_folder), device="cpu", last_layer=LAYER)
    batch = tokens(model, contexts=1, length=30)
    batch[0, 12] = model.tokenizer.bos
    positions = torch.cat([torch.arange(12), torch.arange(18)])[None]
    key: Key = (LAYER, "mlp_out")
    batched = run_modules(model, batch, keys=[key], positions=positions)[key][0]
    alone = torch.cat([run_modules(model, document, keys=[key])[key][0] for document in batch.split([12, 18], dim=1)])
    assert relative_error(batched, alone) < 1e-5
    across = run_modules(model, batch, keys=[key])[key][0]
    assert relative_error(across[12:], alone[12:]) > 1e-2
