"""Runs in an environment of sparsify: its own loader on our files, hooked on the Hugging Face module.

python load_in_sparsify.py FOLDER MODEL
"""

import sys
from importlib.metadata import version
from pathlib import Path

import torch
from sparsify import SparseCoder
from transformers import AutoModelForCausalLM

exported = Path(sys.argv[1])
rows = torch.load(exported / "rows.pt", weights_only=True)
found: dict[str, object] = {"peer": f"sparsify {version('eai-sparsify')}"}
for root in sorted(exported.glob("sparsify*")):
    for name, coder in SparseCoder.load_many(str(root), local=True).items():
        source = rows["mlp_in"]
        encoded = coder.encode(source)
        features = torch.zeros(len(source), coder.num_latents).scatter(1, encoded.top_indices, encoded.top_acts)
        forward = coder(source, rows["target"])
        found[str((root / name).relative_to(exported))] = {
            "class": type(coder).__name__,
            "features": features.detach(),
            "output": forward.sae_out.detach(),
            "fvu": float(forward.fvu),
        }


def in_model(folder: str) -> dict[str, dict[str, float]]:
    """What the model loses with each of them hooked on its module."""
    model, tokens = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), rows["context"]

    def cross_entropy() -> float:
        return float(torch.nn.functional.cross_entropy(model(tokens).logits[0, :-1], tokens[0, 1:]))

    with torch.no_grad():
        spliced = {"clean": {"cross_entropy": cross_entropy()}}
        for root in sorted(exported.glob("sparsify*")):
            for name, coder in SparseCoder.load_many(str(root), local=True).items():
                module = model.base_model.get_submodule(name)

                def replaced(
                    _module: object, args: tuple[torch.Tensor], _out: object, coder: SparseCoder = coder
                ) -> object:
                    return coder(args[0].flatten(0, 1)).sae_out.view_as(args[0])

                handle = module.register_forward_hook(replaced)
                spliced[str((root / name).relative_to(exported))] = {"cross_entropy": cross_entropy()}
                handle.remove()
    return spliced


if sys.argv[2:]:
    found["in_model"] = in_model(sys.argv[2])
torch.save(found, exported / "found.sparsify.pt")
