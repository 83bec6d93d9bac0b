"""circuit-tracer's layout: layer_L.safetensors for every layer, and a config.yaml that names the input.

W_enc (dict_size, d_source)  b_enc (dict_size,)  W_dec (dict_size, d_target)  b_dec (d_target,)
activation_function.threshold (dict_size,)       where the activation is JumpReLU
"""

import re
from pathlib import Path

from common.errors import MismatchError, UsageError
from transcoder.formats.foreign_files import read_tensors
from transcoder.formats.wanted import NAMES, Wanted, transcoder_of, view_of
from transcoder.transcoder import Transcoder

_THRESHOLD = "activation_function.threshold"


def find_circuit_tracer(path: Path, wanted: Wanted) -> Path | None:
    """The layer's file that ``path`` means, where it is of this layout."""
    if re.fullmatch(r"layer_\d+\.safetensors", path.name):
        return path
    file = path / f"layer_{wanted.layer}.safetensors"
    return file if file.is_file() else None


def read_circuit_tracer(path: Path, wanted: Wanted) -> Transcoder:
    """One layer of a set whose activation is JumpReLU, or ReLU where it has no threshold."""
    # Four flat keys of a yaml file: not worth a parser that runs on files from elsewhere.
    config = path.parent / "config.yaml"
    if not config.is_file():
        what = "There is no config.yaml beside the file to say what its encoder reads."
        raise UsageError(what, where=path.parent)
    fields = dict(re.findall(r"^(\w+): *['\"]?([^'\"#\s]*)", config.read_text(errors="replace"), re.MULTILINE))
    if fields.get("activation") == "topk":
        raise MismatchError("The set's activation is top-k; JumpReLU and ReLU are read.", where=config)
    layer = int(path.stem.removeprefix("layer_"))
    hooks = (f"blocks.{layer}.{fields.get(f'feature_{side}_hook')}" for side in ("input", "output"))
    view = view_of(*hooks, where=config, wanted=wanted)
    tensors = read_tensors(path, names=NAMES, optional=frozenset({_THRESHOLD, "W_skip"}))
    if "W_skip" in tensors:
        raise MismatchError("The file has a skip term, which is not read.", where=path)
    if _THRESHOLD in tensors:
        tensors["threshold"] = tensors.pop(_THRESHOLD)
    tensors["W_enc"] = tensors["W_enc"].T
    return transcoder_of(tensors, path.stem, view=view, where=path, wanted=wanted)
