"""Activations between torch and the disk: bfloat16 is passed on as its bits, never by value."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

Activations = Float[Tensor, "_ _"] | Float[np.ndarray, "_ _"]
TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def read_as(dtype: str) -> str:
    """The float type in which rows of this stored type are read and buffered: bfloat16 for int8."""
    return "bfloat16" if dtype == "int8" else dtype


@dataclass(frozen=True)
class StoredRows:
    """Rows as they will be stored, on their device; whether all are finite; the squared error that storing makes."""

    values: Float[Tensor, "rows width"]
    finite: bool
    error: Float64[np.ndarray, " rows"]

    @property
    def finite_rows(self) -> Bool[np.ndarray, " rows"]:
        """Which rows have neither NaN nor infinity."""
        return torch.isfinite(self.values).all(dim=1).cpu().numpy()


def to_stored(rows: Activations, dtype: str) -> StoredRows:
    """Round ``rows`` to ``dtype``, on the device where they are.

    For int8 this rounds to bfloat16: quantisation needs all rows of a segment and comes later.
    """
    given = torch.from_numpy(np.ascontiguousarray(rows)) if isinstance(rows, np.ndarray) else rows.detach()
    stored = given.to(TORCH_DTYPES[read_as(dtype)]).contiguous()
    finite = _all_finite(stored)
    if given.dtype == stored.dtype or not finite:
        error = np.zeros(len(given))
    else:
        # The difference of a float and its own rounding is exact.
        error = torch.linalg.vector_norm(given - stored, dim=1, dtype=torch.float64).square().cpu().numpy()
    return StoredRows(stored, finite, error)


def _all_finite(stored: Float[Tensor, "rows width"]) -> bool:
    """Whether no value is NaN or infinite: either would be the largest or the smallest."""
    # Both ends in one transfer: the host waits for the GPU once.
    return not stored.numel() or all(math.isfinite(end) for end in torch.stack(torch.aminmax(stored)).tolist())


def to_array(tensor: Float[Tensor, "..."]) -> Shaped[np.ndarray, "..."]:
    """The tensor's memory as numpy; bfloat16 as its bits."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def to_tensor(stored: Shaped[np.ndarray, "..."], dtype: str) -> Shaped[Tensor, "..."]:
    """The inverse of ``to_array``: stored values as a tensor on the same memory."""
    if dtype == "bfloat16":
        return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(stored)
