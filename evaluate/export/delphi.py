"""delphi's latent cache: every firing of every feature, from which delphi samples contexts and explains them.

    latents/<hookpoint>/<first>_<last>.safetensors     the features first to last: locations, activations, tokens
    latents/<hookpoint>/config.json

``locations`` are (sequence, position, feature less first), ascending; ``activations`` are float16, and those of at
most 1e-5 are left out, as delphi leaves them out. ``tokens`` (sequences, context) stand in every file. Evidence keeps
only the values near the contexts it shows, so this one format is made of the code of all rows.
"""

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int
from safetensors.numpy import save

from evaluate.export.files import Files
from evaluate.features.code import Code

# Files that delphi deals the features over, and the activation that it takes for zero.
SPLITS = 5
_SMALLEST = 1e-5


def hookpoint(layer: int, architecture: str | None) -> str:
    """The module that delphi would hook, as it names modules of a Hugging Face model."""
    return f"h.{layer}.mlp" if architecture == "gpt2" else f"layers.{layer}.mlp"


def delphi_files(
    code: Code,
    tokens: Int[np.ndarray, " rows"],
    position: Int[np.ndarray, " rows"],
    *,
    dict_size: int,
    context: int,
    padding: int,
    folder: str,
    config: dict[str, Any],
) -> Files:
    """The cache of one layer. Rows whose positions follow each other are a sequence; short ones end in ``padding``."""
    sequence = sequences_of(position)
    table = np.full((int(sequence[-1]) + 1, context), padding, dtype=np.int64)
    table[sequence, position] = tokens
    kept = np.abs(code.value) > _SMALLEST
    row = code.row[kept]
    locations = np.stack([sequence[row], position[row].astype(np.int64), code.feature[kept].astype(np.int64)], axis=1)
    activations = code.value[kept].astype(np.float16)
    for first, end in _bounds(dict_size):
        own = (locations[:, 2] >= first) & (locations[:, 2] < end)
        arrays = {
            "locations": _small(locations[own] - np.array([0, 0, first])),
            "activations": activations[own],
            "tokens": table,
        }
        yield f"latents/{folder}/{first}_{end - 1}.safetensors", (save(arrays),)
    known = {"cache_ctx_len": context, "n_tokens": int(table.size), "n_splits": SPLITS}
    yield f"latents/{folder}/config.json", (json.dumps(config | known, indent=1).encode() + b"\n",)


def sequences_of(position: Int[np.ndarray, " rows"]) -> Int[np.ndarray, " rows"]:
    """Which sequence each row belongs to: a new one begins where the positions do not go on."""
    begins = np.diff(position.astype(np.int64), prepend=-1) != 1
    begins[:1] = True
    return np.cumsum(begins) - 1


def _bounds(dict_size: int) -> Iterable[tuple[int, int]]:
    edges = np.linspace(0, dict_size, SPLITS + 1).astype(np.int64).tolist()
    return pairwise(edges)


def _small(locations: Int[np.ndarray, "entries 3"]) -> np.ndarray:
    """In 16 bits where sequences and features fit, as delphi itself decides."""
    fits = not len(locations) or int(locations[:, [0, 2]].max()) < 1 << 16
    return np.ascontiguousarray(locations, dtype=np.uint16 if fits else np.uint32)
