"""Plain Hugging Face hooks on a whole model, as the oracle of the sites, and tokens to run it on."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModelForCausalLM

LAYER = 2


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request) -> str:
    return request.param


def tokens(model, *, contexts=3, length=40):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(3, 200, (contexts, length), generator=generator)
    drawn[:, 0] = model.tokenizer.bos
    return drawn


def oracle(folder, family, dtype, batch):
    """mlp_in, mlp_out, the residual stream and the norm by hooks on a whole model that this project never touched."""
    hugging = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    found = {}

    def out(name):
        return lambda _, __, output: found.__setitem__(name, output[0] if isinstance(output, tuple) else output)

    if family == "gpt2":
        block = hugging.transformer.h[LAYER]
        block.ln_2.register_forward_pre_hook(lambda _, args: found.__setitem__("resid_mid", args[0]))
        block.ln_2.register_forward_hook(out("mlp_in"))
        block.mlp.register_forward_hook(out("mlp_out"))
        block.attn.register_forward_hook(out("attn_out"))
        gain, bias = block.ln_2.weight, block.ln_2.bias
    else:
        block = hugging.model.layers[LAYER]
        block.pre_feedforward_layernorm.register_forward_pre_hook(
            lambda _, args: found.__setitem__("resid_mid", args[0])
        )
        block.pre_feedforward_layernorm.register_forward_hook(out("mlp_in"))
        block.post_feedforward_layernorm.register_forward_hook(out("mlp_out"))
        block.post_attention_layernorm.register_forward_hook(out("attn_out"))
        gain, bias = 1 + block.pre_feedforward_layernorm.weight, torch.zeros(())
    with torch.inference_mode():
        states = hugging(batch, output_hidden_states=True).hidden_states
        found["resid_pre"], found["resid_post"] = states[LAYER], states[LAYER + 1]
        found["ln2_normalized"] = (found["mlp_in"].float() - bias.float()) / gain.float()
    return found


@pytest.fixture(name="tokens")
def tokens_of_model() -> Callable[..., torch.Tensor]:
    """``tokens(model)``: contexts that begin as the model's do."""
    return tokens


@pytest.fixture(name="oracle")
def oracle_of_model() -> Callable[..., dict[str, torch.Tensor]]:
    """``oracle(folder, family, dtype, tokens)``: layer 2's sites by their names."""
    return oracle
