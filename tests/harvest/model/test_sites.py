"""The sites' definitions, in float64."""

import torch

from harvest.model.forward import Key, run_modules
from harvest.model.language_model import load_model

LAYER = 2


def tokens(model, *, contexts=3, length=40):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(3, 200, (contexts, length), generator=generator)
    drawn[:, 0] = model.tokenizer.bos
    return drawn


def test_the_definitions_in_float64(model_folder, family):
    """mlp_in and mlp_out of a row from resid_mid, by the formulas, in a few lines."""
    model = load_model(str(model_folder), device="cpu", last_layer=LAYER)
    keys: list[Key] = [(LAYER, site) for site in ("resid_mid", "mlp_in", "mlp_out", "ln2_normalized")]
    got = {site: t[0].double() for (_, site), t in run_modules(model, tokens(model), keys=keys).items()}
    weights = {n: p.double() for n, p in model.block(LAYER).named_parameters()}
    x = got["resid_mid"]
    if family == "gpt2":
        normalised = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        h = normalised * weights["ln_2.weight"] + weights["ln_2.bias"]
        inner = h @ weights["mlp.c_fc.weight"] + weights["mlp.c_fc.bias"]
        inner = torch.nn.functional.gelu(inner, approximate="tanh")
        out = inner @ weights["mlp.c_proj.weight"] + weights["mlp.c_proj.bias"]
    else:
        normalised = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        h = normalised * (1 + weights["pre_feedforward_layernorm.weight"])
        gate = torch.nn.functional.gelu(h @ weights["mlp.gate_proj.weight"].T, approximate="tanh")
        raw = (gate * (h @ weights["mlp.up_proj.weight"].T)) @ weights["mlp.down_proj.weight"].T
        rms = (raw.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        out = raw / rms * (1 + weights["post_feedforward_layernorm.weight"])
    for name, expected in (("ln2_normalized", normalised), ("mlp_in", h), ("mlp_out", out)):
        assert torch.allclose(got[name], expected, rtol=1e-4, atol=1e-5), name


def test_gain_and_bias_turn_normalised_into_mlp_in(model_folder):
    model = load_model(str(model_folder), device="cpu", dtype="bfloat16", last_layer=LAYER)
    captured = run_modules(model, tokens(model), keys=[(LAYER, "ln2_normalized"), (LAYER, "mlp_in")])
    rebuilt = model.norm(LAYER).apply(captured[LAYER, "ln2_normalized"]).bfloat16()
    assert (rebuilt == captured[LAYER, "mlp_in"]).float().mean() > 0.999
