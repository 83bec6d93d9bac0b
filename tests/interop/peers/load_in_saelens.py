"""Runs in an environment of SAELens: its own loader on our files, and in its own model.

python load_in_saelens.py FOLDER MODEL
"""

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE, HookedSAETransformer, __version__
from transformer_lens import HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import AutoModelForCausalLM

exported = Path(sys.argv[1])
rows = torch.load(exported / "rows.pt", weights_only=True)
found: dict[str, object] = {"peer": f"SAELens {__version__}"}


def measure(folder: Path, source: torch.Tensor) -> dict[str, object]:
    sae = SAE.load_from_disk(folder)
    acts = sae.encode(source)
    out = sae.decode(acts)
    if hasattr(sae, "W_skip"):
        out = sae(source)
    return {
        "class": type(sae).__name__,
        "features": acts.detach(),
        "output": out.detach(),
        "hook": sae.cfg.metadata.hook_name,
        "hook_out": sae.cfg.metadata.hook_name_out,
        "record": json.loads(json.dumps(sae.cfg.metadata.nestcoder)),
    }


for folder in sorted(path.parent for path in exported.rglob("sae_weights.safetensors")):
    config = json.loads((folder / "cfg.json").read_text())
    view = "ln2_normalized" if "ln2" in config["metadata"]["hook_name"] else "mlp_in"
    found[str(folder.relative_to(exported))] = measure(folder, rows[view])


def hooked_model(folder: str) -> HookedSAETransformer:
    """A GPT-2 of ours in TransformerLens's implementation, its weights as they are."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    shape = theirs.config
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
        original_architecture="GPT2LMHeadModel",
        device="cpu",
    )
    model = HookedSAETransformer(config)
    weights = convert_gpt2_weights(theirs, config)
    model.load_and_process_state_dict(
        weights, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model.eval()


def cross_entropy(logits: torch.Tensor, tokens: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]))


if sys.argv[2:] and json.loads((Path(sys.argv[2]) / "config.json").read_text())["model_type"] == "gpt2":
    model, tokens = hooked_model(sys.argv[2]), rows["context"]
    with torch.no_grad():
        clean = model(tokens)
        spliced = {"clean": {"cross_entropy": cross_entropy(clean, tokens)}}
        for folder in sorted(path.parent for path in exported.rglob("sae_weights.safetensors")):
            sae = SAE.load_from_disk(folder)
            loss = cross_entropy(model.run_with_saes(tokens, saes=[sae]), tokens)
            sae.use_error_term = True
            restored = model.run_with_saes(tokens, saes=[sae])
            spliced[str(folder.relative_to(exported))] = {
                "cross_entropy": loss,
                "largest_difference_with_error_term": float((restored - clean).abs().max()),
            }
    found["in_model"] = spliced
torch.save(found, exported / "found.saelens.pt")
