"""The proof of the sites: it succeeds on both families, and fails with its numbers for every wrong recipe."""

import pytest

from common.errors import NumericalError
from harvest.model.forward import Key, run_modules
from harvest.model.language_model import boot_bridge, load_model
from harvest.model.proof import ALONE, equations, prove_sites, relative_error

LAYER = 2


def test_the_proof_succeeds_and_states_its_numbers(model_folder, dtype, tokens):
    model = load_model(str(model_folder), device="cpu", dtype=dtype, last_layer=LAYER)
    for proof in prove_sites(model, boot_bridge(model), tokens(model), layers=[0, LAYER], sites=["mlp_in", "mlp_out"]):
        proof.require()
        assert proof.record()["errors"]["mlp(mlp_in) = mlp_out"] == 0.0
        assert proof.errors["ln2_normalized * gain + bias = mlp_in"] < (1e-6 if dtype == "float32" else 1e-4)
        assert proof.rows == 3 * 39


def test_the_recipe_of_the_raw_norm_weight_fails_the_proof(model_folder, tokens):
    """``hook_normalized * ln2.w``: forgets GPT-2's bias, and on Gemma-2 takes an offset for the gain."""
    model = load_model(str(model_folder), device="cpu", last_layer=LAYER)
    batch = tokens(model)
    keys: list[Key] = [(LAYER, "ln2_normalized"), (LAYER, "mlp_in"), (LAYER, "mlp_out"), (LAYER, "resid_mid")]
    captured = run_modules(model, batch, keys=[*keys, (LAYER, "resid_post")])
    family = model.family
    weight = getattr(model.block(LAYER), family.norm).weight
    captured[LAYER, "mlp_in"] = captured[LAYER, "ln2_normalized"] * weight
    left, right = equations(model, LAYER, captured)["mlp(mlp_in) = mlp_out"]
    assert relative_error(left.flatten(0, 1), right.flatten(0, 1)) > 0.1


def test_a_wrong_target_stops_the_run_with_its_number(model_folders, tokens):
    """Gemma-2's MLP output before the post norm is not what the layer adds to the residual stream."""
    model = load_model(str(model_folders["gemma2"]), device="cpu", last_layer=LAYER)
    (proof,) = prove_sites(model, boot_bridge(model), tokens(model), layers=[LAYER], sites=["mlp_out"])
    wrong = type(proof)(**{**proof.record(), "errors": {**proof.errors, "resid_mid + mlp_out = resid_post": 0.4}})
    with pytest.raises(NumericalError, match=r"resid_mid \+ mlp_out = resid_post: 0\.4"):
        wrong.require()


def test_nan_never_passes_a_proof(model_folders, tokens):
    model = load_model(str(model_folders["gpt2"]), device="cpu", last_layer=LAYER)
    (proof,) = prove_sites(model, boot_bridge(model), tokens(model), layers=[LAYER], sites=["mlp_out"])
    worse = type(proof)(**{**proof.record(), "errors": dict.fromkeys(proof.errors, float("nan"))})
    assert worse.failures == list(proof.errors)


def test_attention_that_ignores_the_soft_cap_fails_the_proof(model_folders, dtype, tokens):
    model = load_model(str(model_folders["gemma2"]), device="cpu", dtype=dtype, last_layer=LAYER)
    bridge = boot_bridge(model)
    for layer in range(LAYER + 1):
        model.block(layer).self_attn.attn_logit_softcapping = None
    (proof,) = prove_sites(model, bridge, tokens(model), layers=[LAYER], sites=["mlp_in"])
    assert proof.bridge_failures


def test_attention_that_looks_across_documents_fails_the_proof(model_folder, tokens):
    model = load_model(str(model_folder), device="cpu", last_layer=LAYER)
    given = {"layers": [LAYER], "sites": ["mlp_in"], "within_documents": True}
    bridge = boot_bridge(model)
    (proof,) = prove_sites(model, bridge, tokens(model), **given)
    assert proof.errors[ALONE] < 1e-5
    model.hugging.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: (args, kwargs | {"position_ids": None}), with_kwargs=True
    )
    (proof,) = prove_sites(model, bridge, tokens(model), **given)
    assert proof.failures == [ALONE]


def test_an_overflow_in_float16_is_named_and_no_hook_is_blamed(model_folders, tokens):
    model = load_model(str(model_folders["gpt2"]), device="cpu", dtype="float16", last_layer=LAYER)
    model.block(LAYER).mlp.c_proj.weight.fill_(6e4)
    with pytest.raises(NumericalError, match=r"overflows in float16: .*mlp_out.* of layer 2") as raised:
        prove_sites(model, boot_bridge(model), tokens(model), layers=[LAYER], sites=["mlp_in", "mlp_out"])
    assert "harvest.dtype" in raised.value.remedy
