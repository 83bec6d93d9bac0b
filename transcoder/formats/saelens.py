"""SAELens's layout: cfg.json + sae_weights.safetensors.

W_enc (d_source, dict_size)  b_enc (dict_size,)  W_dec (dict_size, d_target)  b_dec (d_target,)
threshold (dict_size,)       only in a jumprelu_transcoder
"""

from pathlib import Path
from typing import Any

from common.errors import MismatchError
from transcoder.formats.foreign_files import read_json, read_tensors
from transcoder.formats.wanted import NAMES, Wanted, transcoder_of, view_of
from transcoder.transcoder import Transcoder

_FILE = "sae_weights.safetensors"


def find_saelens(path: Path, _wanted: Wanted) -> Path | None:
    """The folder that ``path`` means, where it is of this layout."""
    if path.name == _FILE and path.is_file():
        return path.parent
    return path if path.name == _FILE or (path / _FILE).is_file() else None


def read_saelens(folder: Path, wanted: Wanted) -> Transcoder:
    """A ``jumprelu_transcoder``, or a ``transcoder``, whose threshold is 0."""
    config = read_json(folder / "cfg.json")
    architecture = config.get("architecture")
    if architecture not in ("jumprelu_transcoder", "transcoder"):
        what = f"The file holds a {architecture!r}; 'jumprelu_transcoder' and 'transcoder' are read."
        raise MismatchError(what, where=folder)
    if config.get("apply_b_dec_to_input", False) or config.get("normalize_activations", "none") not in ("none", None):
        what = "The file asks for b_dec to be subtracted from the input, or the input to be scaled: neither is done."
        raise MismatchError(what, where=folder)
    names = NAMES | ({"threshold"} if architecture == "jumprelu_transcoder" else set())
    tensors = read_tensors(folder / _FILE, names=names)
    metadata = config.get("metadata")
    hooks: dict[str, Any] = metadata if isinstance(metadata, dict) else config
    view = view_of(hooks.get("hook_name"), hooks.get("hook_name_out"), folder, wanted)
    return transcoder_of(tensors, folder.name, view=view, where=folder / _FILE, wanted=wanted)
