"""Runs in an environment of sparsify: its own loader on our files, hooked on the Hugging Face module.

python load_in_sparsify.py FOLDER [MODEL]
"""

from collections.abc import Iterator
from importlib.metadata import version

import torch
from given import exported, model, rows, source
from on_module import Reconstruct, losses
from sparsify import SparseCoder

found: dict[str, object] = {"peer": f"sparsify {version('eai-sparsify')}"}
coders = {
    str((root / name).relative_to(exported)): (name, coder)
    for root in sorted({path.parent.parent for path in exported.rglob("sae.safetensors")})
    for name, coder in SparseCoder.load_many(str(root), local=True).items()
}


def reconstruction(coder: SparseCoder, read: torch.Tensor) -> torch.Tensor:
    """By its own forward pass."""
    return coder(read).sae_out


def hooked() -> Iterator[tuple[str, str, bool, Reconstruct]]:
    """Each on the module whose path is its folder's name."""
    for folder, (module, coder) in coders.items():
        yield folder, module, not coder.cfg.transcode, lambda read, coder=coder: reconstruction(coder, read)


for folder, (_, coder) in coders.items():
    read = source(folder)
    encoded = coder.encode(read)
    features = torch.zeros(len(read), coder.num_latents).scatter(1, encoded.top_indices, encoded.top_acts)
    found[folder] = {
        "class": type(coder).__name__,
        "features": features.detach(),
        "output": reconstruction(coder, read).detach(),
        "fvu": float(coder(read, rows["target"]).fvu.detach()),
    }
language_model = model()
if language_model:
    found["in_model"] = losses(language_model, rows["context"], hooked())
torch.save(found, exported / "found.sparsify.pt")
