"""Runs in an environment of dictionary_learning: its own loader.  python load_in_dictionary_learning.py FOLDER

A fresh install brings an nnsight that does not import beside transformers 5. No dictionary needs it, so an empty module
takes its place where the real one fails.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import torch

note = ""
try:
    import nnsight  # noqa: F401
except Exception as error:  # whatever it is, it is said
    note = f"nnsight does not import: {type(error).__name__}"
    for name in [name for name in sys.modules if name.split(".")[0] == "nnsight"]:
        del sys.modules[name]
    stub = ModuleType("nnsight")
    stub.LanguageModel = object  # type: ignore[attr-defined]
    sys.modules["nnsight"] = stub
from dictionary_learning.utils import load_dictionary  # noqa: E402 - after what it needs is in its place

exported = Path(sys.argv[1])
rows = torch.load(exported / "rows.pt", weights_only=True)
found: dict[str, object] = {"peer": f"dictionary_learning {version('dictionary-learning')}", "note": note}
for folder in sorted(path.parent for path in exported.glob("dictionary_learning*/**/ae.pt")):
    dictionary, _ = load_dictionary(str(folder), device="cpu")
    features = dictionary.encode(rows["mlp_in"])
    found[str(folder.relative_to(exported))] = {
        "class": type(dictionary).__name__,
        "features": features.detach(),
        "output": dictionary.decode(features).detach(),
    }
torch.save(found, exported / "found.dictionary_learning.pt")
