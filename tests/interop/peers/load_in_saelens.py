"""Runs in an environment of SAELens: its own loader on our files, and in its own model.

python load_in_saelens.py FOLDER [MODEL]
"""

import json
from pathlib import Path

import torch
from given import exported, model, rows, source
from hooked import cross_entropy, gpt2
from sae_lens import SAE, HookedSAETransformer, __version__

found: dict[str, object] = {"peer": f"SAELens {__version__}"}
folders = sorted(path.parent for path in exported.rglob("sae_weights.safetensors"))


def measured(folder: Path, read: torch.Tensor) -> dict[str, object]:
    """What it computes from the rows that it reads, and its own metadata."""
    sae = SAE.load_from_disk(folder)
    features = sae.encode(read)
    output = sae(read) if hasattr(sae, "W_skip") else sae.decode(features)
    return {
        "class": type(sae).__name__,
        "features": features.detach(),
        "output": output.detach(),
        "hook": sae.cfg.metadata.hook_name,
        "hook_out": sae.cfg.metadata.hook_name_out,
        "record": json.loads(json.dumps(sae.cfg.metadata.nestcoder)),
    }


def in_model(name: str) -> dict[str, dict[str, float]]:
    """The loss of SAELens's own model with each of them at the hooks that its file names."""
    hooked, tokens = gpt2(name, HookedSAETransformer), rows["context"]
    with torch.no_grad():
        clean = hooked(tokens)
        spliced = {"clean": {"cross_entropy": cross_entropy(clean, tokens)}}
        for folder in folders:
            sae = SAE.load_from_disk(folder)
            loss = cross_entropy(hooked.run_with_saes(tokens, saes=[sae]), tokens)
            sae.use_error_term = True
            restored = hooked.run_with_saes(tokens, saes=[sae])
            spliced[str(folder.relative_to(exported))] = {
                "cross_entropy": loss,
                "largest_difference_with_error_term": float((restored - clean).abs().max()),
            }
    return spliced


for folder in folders:
    name = str(folder.relative_to(exported))
    found[name] = measured(folder, source(name))
language_model = model()
if language_model:
    found["in_model"] = in_model(language_model)
torch.save(found, exported / "found.saelens.pt")
