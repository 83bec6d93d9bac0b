"""A GPT-2 in TransformerLens's implementation, for the tools that are built on it."""

from typing import Any

import torch
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import AutoModelForCausalLM


def gpt2(folder: str, class_: Any) -> Any:
    """The model in ``folder`` as a ``class_`` (a HookedTransformer), its weights as they are: nothing folded."""
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    shape = loaded.config
    config = HookedTransformerConfig(
        n_layers=shape.n_layer,
        d_model=shape.n_embd,
        n_heads=shape.n_head,
        d_head=shape.n_embd // shape.n_head,
        d_mlp=shape.n_inner or 4 * shape.n_embd,
        n_ctx=shape.n_positions,
        d_vocab=shape.vocab_size,
        act_fn=shape.activation_function,
        normalization_type="LN",
        eps=shape.layer_norm_epsilon,
        model_name="gpt2",
        original_architecture="GPT2LMHeadModel",
        device="cpu",
    )
    model = class_(config)
    weights = convert_gpt2_weights(loaded, config)
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model.eval()


def cross_entropy(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    """Of the next tokens of one context, in nats."""
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]))
