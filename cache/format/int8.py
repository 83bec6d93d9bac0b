"""Rows in 8 bits: x is stored as q with x = q * scale[row] * channel[dimension], rounded to bfloat16 when it is read.

    channel_j = mean over the segment's rows of |x_j|          (1 where that is 0)
    scale_i   = max over j of |x_ij / channel_j| / 127         (1 where that is 0)
    q_ij      = round to even of x_ij / (scale_i * channel_j)

With only one scale for each row, a few outlying dimensions would use all of the range.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import BFloat16, Float32, Float64, Int8, UInt16
from torch import Tensor

from cache.format.dtypes import to_tensor

# Rows that are converted to float32 at a time, so that no second array of a segment's size is needed.
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Quantised:
    """A segment's rows in 8 bits, and the squared error of each row."""

    values: Int8[np.ndarray, "rows width"]
    scale: Float32[np.ndarray, " rows"]
    channel: Float32[np.ndarray, " width"]
    error: Float64[np.ndarray, " rows"]


def quantise(bits: UInt16[np.ndarray, "rows width"]) -> Quantised:
    """Quantise finite bfloat16 rows, given as their bits."""
    channel = _mean_magnitude(bits)
    values = np.empty(bits.shape, np.int8)
    scale = np.empty(len(bits), np.float32)
    error = np.empty(len(bits))
    for start in range(0, len(bits), _BLOCK_ROWS):
        here = slice(start, start + _BLOCK_ROWS)
        exact = to_tensor(bits[here], "bfloat16").float().numpy()
        relative = exact / channel
        # The largest int8, so that the largest value of a row just fits.
        scale[here] = _ones_for_zeros(np.abs(relative).max(axis=1) / np.float32(127))
        values[here] = np.rint(relative / scale[here, None])
        back = restore(*(torch.from_numpy(array) for array in (values[here], scale[here], channel)))
        error[here] = ((exact - back.float().numpy()).astype(np.float64) ** 2).sum(axis=1)
    return Quantised(values, scale, channel, error)


def restore(
    values: Int8[Tensor, "rows width"], scale: Float32[Tensor, " rows"], channel: Float32[Tensor, "*many width"]
) -> BFloat16[Tensor, "rows width"]:
    """The rows; ``channel`` is one vector for all rows, or one for each."""
    return (values.float() * scale[:, None] * channel).bfloat16()


def _mean_magnitude(bits: UInt16[np.ndarray, "rows width"]) -> Float32[np.ndarray, " width"]:
    total = np.zeros(bits.shape[1])
    for start in range(0, len(bits), _BLOCK_ROWS):
        exact = to_tensor(bits[start : start + _BLOCK_ROWS], "bfloat16").float().numpy()
        total += np.abs(exact).sum(axis=0, dtype=np.float64)
    return _ones_for_zeros((total / len(bits)).astype(np.float32))


def _ones_for_zeros(values: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    return np.where(values > 0, values, np.float32(1))
