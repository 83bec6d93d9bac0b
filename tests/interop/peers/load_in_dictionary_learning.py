"""Runs in an environment of dictionary_learning: its own loader, and what it loaded on the Hugging Face module.

python load_in_dictionary_learning.py FOLDER [MODEL]

A fresh install brings an nnsight that does not import beside transformers 5. No dictionary needs it, so an empty module
takes its place where the real one fails; its own evaluation in the model, which does need it, is left out then.
"""

import json
import sys
from collections.abc import Iterator
from importlib.metadata import version
from types import ModuleType

import torch
from given import exported, model, rows, source
from on_module import Reconstruct, losses

note = ""
try:
    import nnsight  # noqa: F401
except Exception as error:  # any failure is noted
    note = f"nnsight does not import: {type(error).__name__}"
    for name in [name for name in sys.modules if name.split(".")[0] == "nnsight"]:
        del sys.modules[name]
    stub = ModuleType("nnsight")
    stub.LanguageModel = object  # type: ignore[attr-defined]
    sys.modules["nnsight"] = stub
from dictionary_learning.utils import load_dictionary  # noqa: E402 - after what it needs is in its place

found: dict[str, object] = {"peer": f"dictionary_learning {version('dictionary-learning')}", "note": note}
folders = sorted(path.parent for path in exported.rglob("ae.pt"))
dictionaries = {str(path.relative_to(exported)): load_dictionary(str(path), device="cpu")[0] for path in folders}


def hooked() -> Iterator[tuple[str, str, bool, Reconstruct]]:
    """Each on the MLP of the layer that its config.json names."""
    for name, dictionary in dictionaries.items():
        layer = json.loads((exported / name / "config.json").read_text())["trainer"]["layer"]
        reads_output = rows["reads"].get(name) == "mlp_out"
        yield name, f"h.{layer}.mlp", reads_output, lambda read, coder=dictionary: coder.decode(coder.encode(read))


for name, dictionary in dictionaries.items():
    features = dictionary.encode(source(name))
    found[name] = {
        "class": type(dictionary).__name__,
        "features": features.detach(),
        "output": dictionary.decode(features).detach(),
    }
language_model = model()
if language_model:
    found["in_model"] = losses(language_model, rows["context"], hooked())
torch.save(found, exported / "found.dictionary_learning.pt")
