"""Small arrays that every step needs, made once on the device: each new copy would make the host wait for the
device."""

from functools import cache

import torch
from jaxtyping import Shaped
from torch import Tensor


@cache  # never freed: a CUDA graph reads such an array at its address
def constant(
    values: tuple[int, ...] | tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> Shaped[Tensor, " values"]:
    """``values`` as an array that must not be changed."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
