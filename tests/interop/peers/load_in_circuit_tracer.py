"""Runs in an environment of circuit-tracer: its own loaders on our sets, and its replacement model.

python load_in_circuit_tracer.py FOLDER [MODEL]
"""

from importlib.metadata import version
from pathlib import Path

import torch
from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
from circuit_tracer.transcoder.single_layer_transcoder import load_gemma_scope_transcoder
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub
from given import exported, model, rows
from hooked import cross_entropy, gpt2

found: dict[str, object] = {"peer": f"circuit-tracer {version('circuit-tracer')}"}
cpu, layer, source = torch.device("cpu"), rows["layer"], rows["ln2_normalized"]
folders = sorted(path.parent for path in exported.glob("circuit_tracer*/config.yaml"))


def in_model(name: str, folder: Path) -> dict[str, dict[str, float]]:
    """The loss with the features' output instead of the MLP's in its own model, and how far the plain model's logits
    are from those with the errors that it computes for attribution."""
    transcoders, _ = load_transcoder_from_hub(f"{folder}/", device=cpu, dtype=torch.float32)
    replacement = gpt2(name, TransformerLensReplacementModel)
    # Its own way to this, from_pretrained, asks the Hub for the model; weights must be there before the set is.
    replacement._configure_replacement_model(transcoders)
    tokens = rows["context"]
    read = f"blocks.{layer}.{replacement.feature_input_hook}"
    written = f"blocks.{layer}.{replacement.feature_output_hook}"
    seen: list[torch.Tensor] = []
    with torch.no_grad():
        clean = replacement.run_with_hooks(tokens, fwd_hooks=[(read, lambda source, hook: seen.append(source))])
        features = transcoders[layer].encode(seen[0][0])
        made = transcoders[layer].decode(features, seen[0][0])[None]
        cost = replacement.run_with_hooks(tokens, fwd_hooks=[(written, lambda output, hook: made)])
        # Attribution leaves the first position to the model: no features there, no error.
        errors = replacement.setup_attribution(tokens).error_vectors[layer]
        restored_output = (made + errors)[:, 1:]
        restored = replacement.run_with_hooks(
            tokens, fwd_hooks=[(written, lambda output, hook: torch.cat([output[:, :1], restored_output], dim=1))]
        )
    return {
        "clean": {"cross_entropy": cross_entropy(clean, tokens)},
        str(folder.relative_to(exported)): {
            "cross_entropy": cross_entropy(cost, tokens),
            "largest_difference_with_error_term": float((restored - clean).abs().max()),
        },
    }


for folder in folders:
    for lazy in (False, True):
        loaded, config = load_transcoder_from_hub(
            f"{folder}/", device=cpu, dtype=torch.float32, lazy_encoder=lazy, lazy_decoder=lazy
        )
        features = loaded[layer].encode(source)
        silent_layers = [number for number in range(len(loaded)) if number != layer]
        found[f"{folder.relative_to(exported)} lazy={lazy}"] = {
            "class": type(loaded).__name__,
            "features": features.detach(),
            "output": loaded[layer].decode(features, source).detach(),
            "hook": config["feature_input_hook"],
            "silent": all(bool((loaded[number].encode(source) == 0).all()) for number in silent_layers),
            "layers": len(loaded),
        }
for file in sorted(exported.glob("gemma_scope*/**/params.npz")):
    transcoder = load_gemma_scope_transcoder(str(file), layer, device=cpu)
    features = transcoder.encode(source)
    found[str(file.parent.relative_to(exported))] = {
        "class": type(transcoder).__name__,
        "features": features.detach(),
        "output": transcoder.decode(features, source).detach(),
    }
language_model = model()
if language_model:
    found["in_model"] = {key: value for folder in folders for key, value in in_model(language_model, folder).items()}
torch.save(found, exported / "found.circuit_tracer.pt")
