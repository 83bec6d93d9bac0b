"""EleutherAI's sparsify: a folder named like the module it was trained on, with cfg.json + sae.safetensors.

    encoder.weight (dict_size, d)  encoder.bias (dict_size,)  W_dec (dict_size, d)  b_dec (d,)  W_skip (d, d) if any

``transcode: true`` reads the module's input and reconstructs its output; false reconstructs what it reads, after it has
subtracted ``b_dec`` from it. It selects by top-k alone, over rectified pre-activations, and knows one width.
"""

import json
from pathlib import Path
from typing import Any

from common import disk
from common.errors import MismatchError, UsageError
from common.sealed.tensors import read_metadata, write_tensors
from transcoder.formats.about import About, words_in
from transcoder.formats.files.safe import read_json, read_tensors
from transcoder.formats.sites import has_post_norm, sites_of_module
from transcoder.formats.wanted import Described, Wanted, dictionary_of, top_k_of
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

_FILE = "sae.safetensors"
_CONFIG = "cfg.json"
_NAMES = {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec", "W_skip": "W_skip"}

BEFORE_POST_NORM = (
    "sparsify hooks the MLP's own output, which Gemma normalises before it adds it: encode with this file, but believe "
    "neither sparsify's FVU nor its cross-entropy"
)


def find_sparsify(path: Path, wanted: Wanted) -> Path | None:
    """The folder that ``path`` means, where it is of this layout: itself, or one of those inside, by its layer."""
    if path.name in (_FILE, _CONFIG) and path.with_name(_FILE).is_file():
        return path.parent
    if (path / _FILE).is_file():
        return path
    inside = [found.parent for found in sorted(path.glob(f"*/{_FILE}"))]
    for folder in inside:
        sites = sites_of_module(folder.name, transcodes=True) or sites_of_module(folder.name, transcodes=False)
        if sites and sites[0].layer == wanted.layer:
            return folder
    return inside[0] if inside else None


def read_sparsify(folder: Path, wanted: Wanted) -> Transcoder:
    """Raises MismatchError for a selection other than top-k, or a folder whose name tells of no module."""
    config = read_json(folder / _CONFIG)
    if config.get("activation", "topk") != "topk":
        what = f"The file's activation is {config.get('activation')!r}; topk is read."
        raise MismatchError(what, where=folder)
    transcodes = config.get("transcode", False) is True
    found = sites_of_module(folder.name, transcodes=transcodes)
    if found is None:
        what = f"The folder's name, {folder.name!r}, is not a module whose tensors a cache can have."
        raise UsageError(what, where=folder, remedy="Name it as sparsify does: h.8.mlp (GPT-2), or layers.8.mlp.")
    skip = config.get("skip_connection", False) is True
    names = {_NAMES[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", *(["W_skip"] if skip else []))}
    stored = read_tensors(folder / _FILE, names=names)
    tensors = {own_name: stored[name] for own_name, name in _NAMES.items() if name in stored}
    for name in {"W_enc", "W_skip"} & tensors.keys():
        tensors[name] = tensors[name].mT if tensors[name].ndim == 2 else tensors[name]
    words = words_in(read_metadata(folder / _FILE))
    return dictionary_of(
        tensors,
        Described(folder, *found, folder.name, model=words.get("model"), own_words=words),
        rule=TopK(top_k_of(config.get("k"), tensors["b_enc"].numel(), path=folder)),
        wanted=wanted,
        subtracted=None if transcodes else tensors["b_dec"],
    )


def write_sparsify(folder: Path, transcoder: Transcoder, about: About) -> None:
    """Both files, of a top-k transcoder of one width."""
    assert isinstance(transcoder.rule, TopK), "sparsify selects by top-k alone"
    arrays = {_NAMES[name]: array.detach().float() for name, array in transcoder.arrays().items()}
    if "W_skip" in arrays:
        arrays["W_skip"] = arrays["W_skip"].T
    if about.is_autoencoder:
        # It subtracts b_dec before it encodes, and our b_enc knows nothing of that.
        shift = arrays["encoder.weight"].double() @ arrays["b_dec"].double()
        arrays["encoder.bias"] = (arrays["encoder.bias"].double() + shift).float()
    config: dict[str, Any] = {
        "activation": "topk",
        "expansion_factor": max(1, transcoder.dict_size // transcoder.d_source),
        "normalize_decoder": False,
        "num_latents": transcoder.dict_size,
        "k": transcoder.top_k,
        "multi_topk": False,
        "skip_connection": transcoder.W_skip is not None,
        "transcode": not about.is_autoencoder,
        "d_in": transcoder.d_source,
    }
    write_tensors(folder / _FILE, arrays, metadata=about.header())
    disk.write_file(folder / _CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def caveat(about: About) -> str:
    """What is not valid of such a file in sparsify, or nothing."""
    reconstructs = about.target_site == "mlp_out"
    return BEFORE_POST_NORM if reconstructs and has_post_norm(about.architecture or about.model) else ""
