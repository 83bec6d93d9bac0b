"""Runs in an environment of SAELens: its own loader on our files, and in its own model.  python saelens.py FOLDER"""

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE, __version__

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
torch.save(found, exported / "saelens.found.pt")
