"""Fraction of variance unexplained over the whole held-out set, and cosine, for every prefix, with intervals.

    FVU_p = sum_t ||y_t - yhat_{p,t}||^2 / sum_t ||y_t - mu||^2        mu = mean of y over the evaluated rows

One pass: with a fixed centre c (any; the cache's mean keeps the numbers small) accumulate in float64

    N,  S1 = sum (y - c),  S2 = sum ||y - c||^2,  E_p = sum ||y - yhat_p||^2      TSS = S2 - ||S1||^2 / N

and likewise the sums of per-token cosines between y and yhat_p and of L0 below p. All are plain sums, so shards and
ranks merge by adding. A row's error and cosine are float32's, as its reconstruction is: off by a few 1e-7 of themselves
at most, and so is the FVU.

Intervals: a Poisson bootstrap over documents. Replicate b gives document d the weight w(b, d) ~ Poisson(1), a pure
function of (seed, b, d), and keeps the same sums weighted by it; replicate 0 has weights 1 and is the estimate. Two
dictionaries evaluated on the same rows share their weights, so differences of replicates are a paired bootstrap.
"""

from dataclasses import dataclass
from math import exp, factorial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt64
from torch import Tensor

from common.errors import NumericalError, UsageError
from evaluate.metrics.metric import Replayed, State, add, mixed, numbered
from evaluate.metrics.sparsity import l0_by_prefix

_BLOCK_ROWS = 64
_NO_VARIANCE = 1e-12
"""Of S2: what rounding may leave of no variance at all."""
_POISSON = np.cumsum([exp(-1) / factorial(count) for count in range(12)])


@dataclass(frozen=True)
class Fit:
    """FVU and cosine of every prefix. ``centre`` is c above; the interval comes from ``replicates`` resamplings."""

    centre: Float[Tensor, " d_target"]
    prefixes: tuple[int, ...]
    replicates: int
    seed: int = 0

    def start(self) -> State:
        """Sums of nothing; row 0 is the estimate, the others the replicates."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(1 + self.replicates, *shape, dtype=torch.float64, device=self.centre.device)

        prefixes = len(self.prefixes)
        by_prefix = {name: zeros(prefixes) for name in ("E", "C", "L")}
        return {"N": zeros(), "S1": zeros(len(self.centre)), "S2": zeros()} | by_prefix

    def measure(self, batch: Replayed) -> State:
        """The batch's sums: document by document, then weighted."""
        documents, place = numbered(batch.document)
        by_document, squares = self._centred(batch.target, place, documents=len(documents))
        each = {
            "N": torch.ones_like(squares),
            "S2": squares,
            "E": squared_errors(batch.reconstructed, batch.target),
            "C": cosines(batch.reconstructed, batch.target),
            "L": l0_by_prefix(batch.selection, self.prefixes),
        }
        weights = bootstrap_weights(documents, replicates=self.replicates, seed=self.seed).to(place.device)
        return weighted_sums_by(each, place, weights=weights) | {"S1": weights @ by_document}

    def _centred(
        self, target: Float[Tensor, "rows d_target"], place: Int[Tensor, " rows"], *, documents: int
    ) -> tuple[Float[Tensor, "documents d_target"], Float[Tensor, " rows"]]:
        """Of every document the sum of y - c, of every row ||y - c||^2."""
        sums = torch.zeros(documents, target.shape[1], dtype=torch.float64, device=target.device)
        squares: list[Tensor] = []
        for y, at in zip(_blocks(target), _blocks(place), strict=True):
            away = y.double() - self.centre.double()
            sums.index_add_(0, at, away)
            squares.append(away.square_().sum(dim=1))
        return sums, torch.cat(squares)

    def combine(self, total: State, part: State) -> State:
        return add(total, part)

    def compute(self, state: State) -> dict[str, Any]:
        """The estimates and their 95 % intervals. Raises NumericalError for values that are not finite."""
        fvu, cosine = fvu_replicates(state), (state["C"] / state["N"][:, None]).cpu().numpy()
        per_prefix = [float(value) for value in fvu[0]]
        if not np.isfinite(per_prefix).all():
            raise NumericalError("the reconstruction is not finite on held-out rows", remedy="Train again, more gently")
        return {
            "fvu": per_prefix[-1],
            "fvu_per_prefix": per_prefix,
            "fvu_min": min(per_prefix),
            "fvu_max": max(per_prefix),
            "fvu_mean": float(np.mean(per_prefix)),
            "fvu_interval_per_prefix": intervals(fvu[1:]),
            "cosine": float(cosine[0, -1]),
            "cosine_per_prefix": [float(value) for value in cosine[0]],
            "cosine_interval_per_prefix": intervals(cosine[1:]),
            "l0_interval_per_prefix": intervals((state["L"] / state["N"][:, None]).cpu().numpy()[1:]),
            "tokens_used": round(float(state["N"][0])),
        }


def fvu_replicates(state: State) -> Float[np.ndarray, "replicates_plus_one prefixes"]:
    """The FVU of every prefix: the estimate, then each replicate. Raises UsageError when there is no variance."""
    total = state["S2"] - state["S1"].square().sum(dim=1) / state["N"]
    if not bool(total[0] > _NO_VARIANCE * state["S2"][0]):
        raise UsageError("held-out rows have no variance to explain", remedy="Harvest more held-out text")
    return (state["E"] / total[:, None]).cpu().numpy()


def intervals(replicates: Float[np.ndarray, "replicates columns"]) -> list[list[float]] | None:
    """The central 95 % of every column; null without replicates, and for so few documents (under five) that more than
    one resampling in a hundred draws none of them."""
    drawn = replicates[np.isfinite(replicates).all(axis=1)]
    if len(drawn) < 0.99 * len(replicates) or not len(drawn):
        return None
    return [[float(low), float(high)] for low, high in np.percentile(drawn, [2.5, 97.5], axis=0).T]


def bootstrap_weights(
    documents: UInt64[np.ndarray, " documents"], *, replicates: int, seed: int
) -> Float[Tensor, "replicates_plus_one documents"]:
    """Row 0 is 1; below it, Poisson(1) counts that depend on nothing but (seed, replicate, document)."""
    streams = mixed(np.arange(replicates, dtype=np.uint64) + np.uint64(seed << 32))
    uniform = (mixed(streams[:, None] ^ mixed(documents)[None]) >> np.uint64(11)) * 2.0**-53
    counts = np.searchsorted(_POISSON, uniform, side="right").astype(np.float64)
    return torch.from_numpy(np.concatenate([np.ones((1, len(documents))), counts]))


def squared_errors(
    reconstructed: Float[Tensor, "rows prefixes d_target"], target: Float[Tensor, "rows d_target"]
) -> Float[Tensor, "rows prefixes"]:
    """Of every row and prefix."""
    pairs = zip(_blocks(reconstructed), _blocks(target), strict=True)
    lengths = [torch.linalg.vector_norm(of - y[:, None], dim=2) for of, y in pairs]
    return torch.cat(lengths).double().square_()


def cosines(
    reconstructed: Float[Tensor, "rows prefixes d_target"], target: Float[Tensor, "rows d_target"]
) -> Float[Tensor, "rows prefixes"]:
    """Of every row and prefix; 0 where either vector is 0."""
    pairs = zip(_blocks(reconstructed), _blocks(target), strict=True)
    along = torch.cat([(of * y[:, None]).sum(dim=2) for of, y in pairs])
    lengths = torch.linalg.vector_norm(reconstructed, dim=2).double() * torch.linalg.vector_norm(target, dim=1)[:, None]
    return along / lengths.clamp_min_(torch.finfo(torch.float32).tiny)


def _blocks(rows: Shaped[Tensor, "rows ..."]) -> tuple[Tensor, ...]:
    """A few rows after another, so that what is made of them never leaves a CPU's caches."""
    return rows.split(max(1, len(rows)) if rows.is_cuda else _BLOCK_ROWS)


def weighted_sums_by(
    each: dict[str, Tensor], place: Int[Tensor, " rows"], *, weights: Float[Tensor, "replicates_plus_one documents"]
) -> State:
    """Values of rows, or vectors, summed in float64 within each document and then over documents by every weighting."""
    sums: State = {}
    for name, values in each.items():
        by_document = torch.zeros(weights.shape[1], *values.shape[1:], dtype=torch.float64, device=values.device)
        by_document.index_add_(0, place, values.double())
        sums[name] = torch.tensordot(weights, by_document, dims=1)
    return sums
