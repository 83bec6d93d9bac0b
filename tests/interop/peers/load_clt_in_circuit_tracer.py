"""Runs in an environment of circuit-tracer: its own loader on our cross-layer transcoders.  python ... FOLDER"""

import sys
from importlib.metadata import version
from pathlib import Path

import torch
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt

exported = Path(sys.argv[1]).absolute()
rows = torch.load(exported / "clt_rows.pt", weights_only=True)
found: dict[str, object] = {"peer": f"circuit-tracer {version('circuit-tracer')}"}
for folder in sorted(path.parent for path in exported.glob("clt/circuit_tracer*/config.yaml")):
    for lazy in (False, True):
        loaded = load_clt(
            str(folder), device=torch.device("cpu"), dtype=torch.float32, lazy_encoder=lazy, lazy_decoder=lazy
        )
        features = loaded.encode(rows)
        found[f"{folder.name} lazy={lazy}"] = {
            "class": type(loaded).__name__,
            "features": features.detach(),
            "output": loaded.decode(features.to_sparse()).detach(),
        }
torch.save(found, exported / "found.clt.pt")
