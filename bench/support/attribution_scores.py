"""Runs in circuit-tracer's environment: the two scores of its attribution graphs, prompt by prompt.

python attribution_scores.py MODEL PROMPTS SET...: MODEL is a folder of a GPT-2 or a Gemma 2, PROMPTS a JSON list of
strings, SET a folder that its loader reads. Prints a line of JSON a set and prompt. The model's weights go into
TransformerLens as they are, and its logits must be those of transformers, or nothing is scored.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from circuit_tracer import attribute
from circuit_tracer.graph import compute_graph_scores
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gemma_weights, convert_gpt2_weights
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

CLOSE = 2e-3
"""Largest difference of two implementations' float32 logits."""


def config_of(language_model: Any) -> HookedTransformerConfig:
    """TransformerLens's words for the model."""
    shape = language_model.config
    common = {"d_vocab": shape.vocab_size, "device": "cpu", "dtype": torch.float32}
    if shape.model_type == "gpt2":
        return HookedTransformerConfig(
            n_layers=shape.n_layer,
            d_model=shape.n_embd,
            n_heads=shape.n_head,
            d_head=shape.n_embd // shape.n_head,
            d_mlp=shape.n_inner or 4 * shape.n_embd,
            n_ctx=shape.n_positions,
            act_fn=shape.activation_function,
            normalization_type="LN",
            eps=shape.layer_norm_epsilon,
            original_architecture="GPT2LMHeadModel",
            **common,
        )
    kinds = {"sliding_attention": "local", "full_attention": "global"}
    return HookedTransformerConfig(
        n_layers=shape.num_hidden_layers,
        d_model=shape.hidden_size,
        n_heads=shape.num_attention_heads,
        n_key_value_heads=shape.num_key_value_heads,
        d_head=shape.head_dim,
        d_mlp=shape.intermediate_size,
        n_ctx=shape.max_position_embeddings,
        act_fn=shape.hidden_activation,
        normalization_type="RMS",
        eps=shape.rms_norm_eps,
        positional_embedding_type="rotary",
        rotary_base=10_000,
        use_attn_scale=True,
        attn_scale=shape.query_pre_attn_scalar**0.5,
        use_local_attn=True,
        window_size=shape.sliding_window,
        attn_types=[kinds[kind] for kind in shape.layer_types],
        attn_scores_soft_cap=shape.attn_logit_softcapping,
        output_logits_soft_cap=shape.final_logit_softcapping,
        gated_mlp=True,
        final_rms=True,
        use_normalization_before_and_after=True,
        original_architecture="Gemma2ForCausalLM",
        **common,
    )


def model_with(
    transcoders: Any, language_model: Any, tokenizer: PreTrainedTokenizerBase
) -> TransformerLensReplacementModel:
    """The model with the dictionaries beside its MLPs. Weights go in first: afterwards its MLPs are wrapped."""
    config = config_of(language_model)
    model = TransformerLensReplacementModel(config, tokenizer, default_padding_side="right")
    convert = convert_gpt2_weights if language_model.config.model_type == "gpt2" else convert_gemma_weights
    model.load_and_process_state_dict(
        convert(language_model, config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    model._configure_replacement_model(transcoders)
    return model.eval()


def check_logits(model: TransformerLensReplacementModel, language_model: Any, tokens: torch.Tensor) -> float:
    """The largest difference from transformers' logits. Raises SystemExit where they are not the same."""
    with torch.no_grad():
        far = float((model(tokens[None])[0] - language_model(tokens[None]).logits[0]).abs().max())
    if far > CLOSE:
        sys.exit(f"TransformerLens's logits are {far:.3g} from those of transformers: these scores would mean nothing.")
    return far


def main() -> None:
    folder, prompts_file, *sets = sys.argv[1:]
    language_model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = json.loads(Path(prompts_file).read_text())
    for path in sets:
        # A trailing slash is what tells its loader a folder from a repository.
        place = f"{Path(path).resolve()}/"
        loaded, _ = load_transcoder_from_hub(place, device=torch.device("cpu"), dtype=torch.float32, lazy_decoder=False)
        model = model_with(loaded, language_model, tokenizer)
        for prompt in prompts:
            # Its own tokeniser takes a BOS whose id is 0 for none.
            ids = tokenizer(prompt, add_special_tokens=False).input_ids
            tokens = torch.tensor([tokenizer.bos_token_id, *ids])
            far = check_logits(model, language_model, tokens)
            started = time.perf_counter()
            graph = attribute(tokens, model, batch_size=256)
            replacement, completeness = compute_graph_scores(graph)
            found = {
                "set": path,
                "prompt": prompt,
                "tokens": len(tokens),
                "features": len(graph.selected_features),
                "replacement": replacement,
                "completeness": completeness,
                "logits_differ": far,
                "seconds": time.perf_counter() - started,
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
