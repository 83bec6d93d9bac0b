"""Runs in an environment of circuit-tracer: its model of a page on every page of our packs.

python read_pages_in_circuit_tracer.py FOLDER

The viewer's own JavaScript then reads the same pages (read_pages_in_circuit_tracer.js); both must say the same.
"""

import gzip
import itertools
import json
import struct
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import circuit_tracer
from circuit_tracer.frontend.feature_models import Model

exported = Path(sys.argv[1]).absolute()
packs = exported / "circuit-tracer"
pages: dict[str, list[dict[str, object]]] = {}
for layer, entry in json.loads(gzip.decompress((packs / "index.json.gz").read_bytes())).items():
    data, offsets = (packs / entry["filename"]).read_bytes(), entry["offsets"]
    pages[layer] = []
    for start, end in itertools.pairwise(offsets):
        if start < end:
            (size,) = struct.unpack("<I", data[start : start + 4])
            assert start + 4 + size == end
            pages[layer].append(Model.model_validate_json(gzip.decompress(data[start + 4 : end])).model_dump())
assets = Path(circuit_tracer.__file__).parent / "frontend" / "assets"
script = Path(__file__).with_suffix(".js")
done = subprocess.run(["node", str(script), str(assets), str(packs)], check=True, capture_output=True, text=True)
viewer = json.loads(done.stdout)
for layer, own in pages.items():
    assert len(viewer[layer]) == len(own)
    for page, shown in zip(own, viewer[layer], strict=True):
        assert {name: shown[name] for name in page} == page
found = {"peer": f"circuit-tracer {version('circuit-tracer')}", "pages": pages}
(exported / "found.circuit_tracer.json").write_text(json.dumps(found))
