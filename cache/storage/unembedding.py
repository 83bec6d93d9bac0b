"""The final norm's gain and the unembedding, stored with the rows so that effects on logits need no language model.

    unembedding.json      UTF-8 JSON: whether the final norm subtracts the mean
    unembedding.gain      (d_target,) float32
    unembedding.weight    (vocabulary, d_target) bfloat16, as its bits

They do not determine the rows, so the fingerprint leaves them out: the same rows with and without them are one cache.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cache.format.dtypes import to_array, to_tensor
from cache.format.parameters import UNEMBEDDING
from common.errors import DamagedError

LIMIT_BYTES = 64 << 20
"""An unembedding of at most this size is stored with every cache: it is less than the weights of the smallest
models."""
LIMIT_SHARE = 0.05
"""A larger one is stored if it takes at most this share of the rows' bytes."""


@dataclass(frozen=True)
class Unembedding:
    """``W_U`` as in the model; ``gain`` of the final norm; ``centred`` if that norm subtracts the mean.

    ``origin`` is a text for people that says where they come from.
    """

    W_U: Float[Tensor, "vocabulary d_target"]
    gain: Float[Tensor, " d_target"]
    centred: bool
    origin: str

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that a cache stores for it, by name."""
        text = np.frombuffer(json.dumps({"centred": self.centred}).encode(), np.uint8)
        return {
            f"{UNEMBEDDING}json": text,
            f"{UNEMBEDDING}gain": self.gain.float().cpu().numpy(),
            f"{UNEMBEDDING}weight": to_array(self.W_U.detach().bfloat16().cpu().contiguous()),
        }


def unembedding_of_arrays(arrays: Mapping[str, np.ndarray], *, origin: str) -> Unembedding:
    """The unembedding in a cache's small arrays, in float32. Raises DamagedError when they are not valid."""
    try:
        facts = json.loads(arrays[f"{UNEMBEDDING}json"].tobytes())
        weight = to_tensor(arrays[f"{UNEMBEDDING}weight"], "bfloat16").float()
        gain = torch.from_numpy(arrays[f"{UNEMBEDDING}gain"])
        if (
            weight.ndim != 2
            or gain.dtype != torch.float32
            or gain.shape != weight.shape[1:]
            or type(facts["centred"]) is not bool
        ):
            raise ValueError(f"a weight of shape {tuple(weight.shape)}, a gain of shape {tuple(gain.shape)}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(f"The unembedding in the cache cannot be read ({error}).") from None
    return Unembedding(weight, gain, centred=facts["centred"], origin=origin)


def is_small(vocabulary: int, d_target: int, *, rows_bytes: int) -> bool:
    """Whether a harvest stores an unembedding of this size with so many bytes of rows."""
    return stored_bytes(vocabulary, d_target) <= max(LIMIT_BYTES, LIMIT_SHARE * rows_bytes)


def stored_bytes(vocabulary: int, d_target: int) -> int:
    """Bytes of an unembedding in a cache."""
    return vocabulary * d_target * torch.bfloat16.itemsize
