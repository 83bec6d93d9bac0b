"""The active features of rows in bfloat16, found exactly by a product in bfloat16, which takes less than half the time.

    pre_ij   = x_i . w_j + b_j                                 what a rule selects from, in float32
    bound_ij = x_i . bf16(w_j) + |x_i| r_j + b_j + s_j         >= pre_ij, as one product of longer rows and columns

    r_j = |w_j - bf16(w_j)| + e |w_j|      Cauchy-Schwarz, and the rounding of the sums; x_i has none: it is bfloat16
    s_j = e' |b_j|

A bound exceeds what it bounds by at most 2 (|x_i| r_j + s_j). Whatever fires therefore has a bound that reaches

    a floor      0, where b_j is taken less the feature's floor (JumpReLU, ReLU, a calibrated batch top-k)
    a row limit  the limit-th largest of what the bounds leave certain; of each strided chunk of features its largest

Only features whose bound reaches it, a few more than fire, are computed in float32; the rule selects from these.

Bounds of 0 or more are compared as integers of the same bits: the order is the same, and integers are faster.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import BFloat16, Float, Int
from torch import Tensor

from transcoder.decode import Bags, activation_gradients
from transcoder.rules.rule import Rule
from transcoder.sparse_code import SparseCode

BLOCK_ROWS = 512
"""Rows whose bounds exist at a time."""

_CHUNK = 16
"""Features a chunk, as in transcoder/rules/topk.py."""
_MIN_DICT_SIZE = 4096
"""A smaller dictionary is computed exactly."""
_SUM_ROUNDING = 2.0**-22
_BIAS_ROUNDING = 2.0**-13
_BFLOAT16_ROUNDING = 2.0**-7
"""The three are at least twice the relative rounding error: of a term in a float32 sum, of a bias written as two
bfloat16 numbers, and of one bfloat16 number."""


@dataclass(frozen=True)
class Prefilter:
    """``columns`` are w_j, r_j, and b_j + s_j as two numbers; ``spread`` and ``slack`` the largest r_j, s_j of a
    chunk."""

    W_enc: Float[Tensor, "dict_size d_source"]
    b_enc: Float[Tensor, " dict_size"]
    rule: Rule
    columns: BFloat16[Tensor, "dict_size d_source_plus_3"]
    spread: Float[Tensor, " chunks"]
    slack: Float[Tensor, " chunks"]

    @staticmethod
    def from_encoder(
        W_enc: Float[Tensor, "dict_size d_source"], b_enc: Float[Tensor, " dict_size"], rule: Rule
    ) -> "Prefilter":
        """The bounds of an encoder whose size is a multiple of 16."""
        bias = b_enc
        size = b_enc.abs()
        floor = rule.floor(b_enc)
        if floor is not None:
            bias = bias - floor
            size = size + floor
        rounded = W_enc.bfloat16()
        rounding = W_enc.shape[1] * _SUM_ROUNDING
        spread = _upwards((W_enc - rounded.float()).norm(dim=1) + rounding * W_enc.norm(dim=1))
        slack = (rounding + _BIAS_ROUNDING) * size
        first = bias.bfloat16()
        second = _upwards(bias - first.float() + slack)
        columns = torch.cat([rounded, torch.stack([spread, first, second], dim=1)], dim=1)
        largest = (column.float().view(_CHUNK, -1).amax(dim=0) for column in (spread, slack))
        return Prefilter(W_enc, b_enc, rule, columns, *largest)

    def select(self, source: BFloat16[Tensor, "rows d_source"]) -> SparseCode:
        """What the rule selects from ``source @ W_enc.T + b_enc``, without entries that do not fire."""
        exact = source.float()
        norm = _upwards(exact.norm(dim=1, keepdim=True))
        bounds = torch.cat([source, norm, torch.ones_like(norm).expand(-1, 2)], dim=1) @ self.columns.T
        reaching = bounds.view(torch.int16).numpy() >= self._lower_bound(bounds, norm.float()).view(torch.int16).numpy()
        entries = torch.from_numpy(np.flatnonzero(reaching))
        starts = torch.arange(len(source) + 1) * bounds.shape[1]
        offsets = torch.searchsorted(entries, starts, out_int32=True)
        return self.rule.among(self._computed(exact, (entries % bounds.shape[1]).int(), offsets))

    def _lower_bound(
        self, bounds: BFloat16[Tensor, "rows dict_size"], norm: Float[Tensor, "rows 1"]
    ) -> BFloat16[Tensor, "rows 1"]:
        """For every row a number that the bound of every firing feature reaches."""
        limit = self.rule.row_limit
        if limit is None:
            return torch.zeros_like(norm, dtype=torch.bfloat16)
        largest = bounds.view(torch.int16).view(len(bounds), _CHUNK, -1).amax(dim=1).view(torch.bfloat16).float()
        certain = largest - _BFLOAT16_ROUNDING * largest.abs() - 2 * (norm * self.spread + self.slack)
        return certain.topk(limit, dim=1, sorted=False).values.amin(dim=1, keepdim=True).relu().bfloat16()

    def _computed(
        self,
        source: Float[Tensor, "rows d_source"],
        features: Int[Tensor, " entries"],
        offsets: Int[Tensor, " rows_plus_one"],
    ) -> SparseCode:
        """The pre-activations of some features of every row, feature by feature, so that the weights are read once."""
        code = SparseCode(torch.empty(len(features)), features, offsets)
        by_feature, order = features.sort()
        bags = Bags(code.rows()[order], offsets)
        sorted_code = replace(code, features=by_feature)
        found = activation_gradients(sorted_code, bags, self.W_enc, grad_sums=source)
        code.values[order] = found + self.b_enc[by_feature.long()]
        return code


def prefilter_of(
    W_enc: Float[Tensor, "dict_size d_source"], b_enc: Float[Tensor, " dict_size"], rule: Rule
) -> Prefilter | None:
    """A prefilter if it is faster (on a CPU that multiplies bfloat16, for a large dictionary), else None."""
    dict_size = b_enc.numel()
    if W_enc.is_cuda or W_enc.dtype != torch.float32 or not _multiplies_bfloat16():
        return None
    if dict_size < _MIN_DICT_SIZE or dict_size % _CHUNK:
        return None
    limit = rule.row_limit
    if rule.floor(b_enc) is None and (limit is None or 2 * limit * _CHUNK > dict_size):
        return None
    prefilter = Prefilter.from_encoder(W_enc, b_enc, rule)
    return prefilter if bool(prefilter.columns.isfinite().all()) else None


def _multiplies_bfloat16() -> bool:
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _upwards(numbers: Float[Tensor, "*shape"]) -> BFloat16[Tensor, "*shape"]:
    """Rounded up to bfloat16."""
    return (numbers + _BFLOAT16_ROUNDING * numbers.abs()).bfloat16()
