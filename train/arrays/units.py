"""The units that training computes in, and the way back to the cache's own.

    source' = source * source_scale      such that the source's variance is 1 a dimension on average
    target' = target * target_scale      likewise

Two fixed numbers for the whole data set, so that learning rates carry over between layers and models; never a scale a
token. A positive scale moves no selection. They are folded back when a transcoder is saved:

    W_enc = W_enc' * source_scale / target_scale    b_enc = b_enc' / target_scale    b_dec = b_dec' / target_scale
    W_skip = W_skip' * source_scale / target_scale  threshold = threshold' / target_scale        W_dec = W_dec'
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader, View
from common.errors import NumericalError, UsageError
from common.norm import NormAffine
from train.arrays.parameters import Parameters


@dataclass(frozen=True)
class Units:
    """The two scales, and the means of source and target in the cache's units. Rows are copied, never changed: an
    autoencoder's source and target are the same array."""

    source_scale: float
    target_scale: float
    source_mean: Float[Tensor, " d_source"]
    target_mean: Float[Tensor, " d_target"]

    def source(self, rows: Float[Tensor, "rows d_source"]) -> Float[Tensor, "rows d_source"]:
        """Rows of the cache's source in training units, float32."""
        return rows.to(torch.float32, copy=True).mul_(self.source_scale)

    def target(self, rows: Float[Tensor, "rows d_target"]) -> Float[Tensor, "rows d_target"]:
        """Rows of the cache's target in training units, float32."""
        return rows.to(torch.float32, copy=True).mul_(self.target_scale)

    def folded(self, weights: Parameters) -> Parameters:
        """The same transcoder in the cache's units."""
        across = self.source_scale / self.target_scale
        factors = {"W_enc": across, "b_enc": 1 / self.target_scale, "b_dec": 1 / self.target_scale, "W_skip": across}
        factors["threshold"] = 1 / self.target_scale
        return Parameters(**{name: array * factors.get(name, 1.0) for name, array in weights.tensors().items()})


def units_of(reader: CacheReader, view: View) -> Units:
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
        raise NumericalError("the rows of this cache do not vary: there is nothing to learn", where=reader.path)
    return Units(
        source_scale=math.sqrt(len(mean) / float(variance.sum())),
        target_scale=math.sqrt(len(target.mean) / target.variance_sum),
        source_mean=torch.from_numpy(mean),
        target_mean=torch.from_numpy(target.mean),
    )


def _norm_of(reader: CacheReader) -> NormAffine:
    """Only what comes out of the norm can be seen as it was before the norm's gain and bias."""
    site = reader.identity.get("source_site")
    norm = NormAffine.of_arrays(reader.arrays)
    if site != "mlp_in" or norm is None:
        raise UsageError(
            f"the source of this cache is {site}, which has no ln2_normalized view",
            where=reader.path,
            remedy="Leave train.source at mlp_in, which takes the source as it is stored",
        )
    return norm
