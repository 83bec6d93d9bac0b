"""Runs in an environment of circuit-tracer: its own loaders on our sets.  python load_in_circuit_tracer.py FOLDER"""

import sys
from importlib.metadata import version
from pathlib import Path

import torch
from circuit_tracer.transcoder.single_layer_transcoder import load_gemma_scope_transcoder
from circuit_tracer.utils.hf_utils import load_transcoder_from_hub

exported = Path(sys.argv[1]).absolute()
rows = torch.load(exported / "rows.pt", weights_only=True)
found: dict[str, object] = {"peer": f"circuit-tracer {version('circuit-tracer')}"}
source = rows["ln2_normalized"]
for folder in sorted(path.parent for path in exported.glob("circuit_tracer*/config.yaml")):
    for lazy in (False, True):
        loaded, config = load_transcoder_from_hub(
            f"{folder}/", device=torch.device("cpu"), dtype=torch.float32, lazy_encoder=lazy, lazy_decoder=lazy
        )
        layer = rows["layer"]
        features = loaded[layer].encode(source)
        found[f"{folder.relative_to(exported)} lazy={lazy}"] = {
            "class": type(loaded).__name__,
            "features": features.detach(),
            "output": loaded[layer].decode(features, source).detach(),
            "hook": config["feature_input_hook"],
            "silent": bool(
                all((loaded[other].encode(source) == 0).all() for other in range(len(loaded)) if other != layer)
            ),
            "layers": len(loaded),
        }
for file in sorted(exported.glob("gemma_scope*/**/params.npz")):
    transcoder = load_gemma_scope_transcoder(str(file), rows["layer"], device=torch.device("cpu"))
    features = transcoder.encode(source)
    found[str(file.parent.relative_to(exported))] = {
        "class": type(transcoder).__name__,
        "features": features.detach(),
        "output": transcoder.decode(features, source).detach(),
    }
torch.save(found, exported / "found.circuit_tracer.pt")
