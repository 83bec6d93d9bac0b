"""Runs in an environment of sparsify: its own loader on our files, hooked on the Hugging Face module.

python sparsify.py FOLDER MODEL
"""

import sys
from importlib.metadata import version
from pathlib import Path

import torch
from sparsify import SparseCoder

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
torch.save(found, exported / "sparsify.found.pt")
