"""The units that training computes in, and how they become the cache's units again.

    source' = source * source_scale      such that the source's variance is 1 in every dimension, or 1 on average
    target' = target * target_scale      such that the target's is 1 on average

Fixed for the whole data set, so that one learning rate fits all layers and models; there is never a scale for one
token. The target has one scale for all dimensions, so that unit rows stay unit rows and no selection moves; the source
may have one a dimension. They are folded back, exactly, when a transcoder is saved:

    W_enc = W_enc' * source_scale / target_scale    b_enc = b_enc' / target_scale    b_dec = b_dec' / target_scale
    W_skip = source_scale * W_skip' / target_scale  threshold = threshold' / target_scale        W_dec = W_dec'

How much each dimension of the target counts is decided in the loss (``dimension_scale``); it is not folded.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from cache.reader import CacheReader, View
from common.device import to_device
from common.errors import NumericalError, UsageError
from common.norm import NormAffine
from train.arrays.parameters import Parameters
from transcoder.constants import constant

SourceScaling = Literal["dimension", "whole"]
"""One scale a dimension of the source, or one for all of it."""
_MIN_VARIANCE = 1e-4
"""Share of the mean variance: so no dimension is scaled up more than a hundred times. One that never varies would
be all noise."""


@dataclass(frozen=True)
class Units:
    """The two scales, and the means of source and target in the cache's units. Rows are copied, never changed: an
    autoencoder's source and target are the same array."""

    source_scale: float | Float[Tensor, " d_source"]
    target_scale: float
    source_mean: Float[Tensor, " d_source"]
    target_mean: Float[Tensor, " d_target"]
    target_variance: Float[Tensor, " d_target"]
    """In training units: 1 on average."""

    @property
    def width(self) -> int:
        """Dimensions of the target."""
        return self.target_mean.numel()

    def source(self, rows: Float[Tensor, "rows d_source"]) -> Float[Tensor, "rows d_source"]:
        """Rows of the cache's source in training units, float32."""
        return _in_units(rows, self.source_scale)

    def target(self, rows: Float[Tensor, "rows d_target"]) -> Float[Tensor, "rows d_target"]:
        """Rows of the cache's target in training units, float32."""
        return _in_units(rows, self.target_scale)

    def folded(self, weights: Parameters) -> Parameters:
        """The same transcoder in the cache's units."""
        scale = self.source_scale
        across = (scale.double() if isinstance(scale, Tensor) else scale) / self.target_scale
        factors = {"W_enc": across, "b_enc": 1 / self.target_scale, "b_dec": 1 / self.target_scale}
        factors["threshold"] = 1 / self.target_scale
        factors["W_skip"] = across[:, None] if isinstance(across, Tensor) else across
        arrays = weights.tensors()
        return Parameters(**{name: scaled(array, factors.get(name, 1.0)) for name, array in arrays.items()})


def _in_units(rows: Float[Tensor, "rows width"], scale: float | Tensor) -> Float[Tensor, "rows width"]:
    """Rows times a scale in float32, in one pass if that is faster."""
    factor = _on(scale, rows.device) if isinstance(scale, Tensor) else constant((scale,), torch.float32, rows.device)
    if rows.dtype == torch.float32 or (rows.is_cuda and rows.dtype.itemsize == 2):
        return torch.mul(rows, factor)
    # On a CPU a product of two dtypes takes twice as long as a copy and a product in place.
    return rows.to(torch.float32).mul_(factor)


@cache  # made once: sending it with every batch would be a copy a step
def _on(scale: Tensor, device: torch.device) -> Tensor:
    return to_device(scale, device)


def scaled(array: Tensor, factor: float | Tensor) -> Tensor:
    """An array times a number, or a number for each of its last dimension."""
    return array * (factor.to(array.device, array.dtype) if isinstance(factor, Tensor) else factor)


def units_of(reader: CacheReader, view: View, scaling: SourceScaling = "dimension") -> Units:
    """From the cache's exact statistics, carried over to the view of the source.

    Raises NumericalError where source or target never varies, UsageError for a view that the source does not have.
    """
    source = reader.statistics.source
    target = reader.statistics.target
    assert target is not None
    mean = source.mean
    variance = source.variance
    if view == "ln2_normalized":
        mean, variance = _norm_of(reader).undo_moments(mean, variance)
    if not (variance.sum() > 0 and target.variance_sum > 0):
        raise NumericalError("The rows of this cache are all the same: there is nothing to learn.", where=reader.path)
    target_scale = math.sqrt(len(target.mean) / target.variance_sum)
    return Units(
        source_scale=_source_scale(variance, scaling),
        target_scale=target_scale,
        source_mean=torch.from_numpy(mean),
        target_mean=torch.from_numpy(target.mean),
        target_variance=torch.from_numpy(target.variance * target_scale**2),
    )


def _source_scale(variance: Float64[np.ndarray, " d_source"], scaling: SourceScaling) -> float | Tensor:
    if scaling == "whole":
        return math.sqrt(len(variance) / float(variance.sum()))
    return torch.from_numpy(np.maximum(variance, _MIN_VARIANCE * variance.mean()) ** -0.5).float()


def _norm_of(reader: CacheReader) -> NormAffine:
    """The norm whose gain and bias can be undone: only the output of a norm has this view."""
    site = reader.identity.get("source_site")
    norm = NormAffine.of_arrays(reader.arrays)
    if site != "mlp_in" or norm is None:
        raise UsageError(
            f"The source of this cache is {site}, which has no ln2_normalized view.",
            where=reader.path,
            remedy="Leave train.source at mlp_in, which takes the source as it is stored.",
        )
    return norm
