"""Fraction of variance unexplained on the held-out rows, in its forms, and cosine; for every prefix, with intervals.

With y a target row, yhat_p its reconstruction by prefix p, mu the mean of y over the evaluated rows, and over rows t
and dimensions j:

    E_pj = sum_t (y_tj - yhat_ptj)^2        V_j = sum_t (y_tj - mu_j)^2        e_pt = sum_j (y_tj - yhat_ptj)^2

    fvu                     sum_j E_pj / sum_j V_j                            pooled: every squared unit counts the same
    without_largest_rows    the same over the rows that are left without the 0.1 % (rounded up) of largest ||y - mu||^2,
                            and about the mean of those
    mean_dimension          mean over j of E_pj / V_j                         every dimension counts the same
    median_dimension        median over j of E_pj / V_j
    whitened                sum_j E_pj / s_j / sum_j V_j / s_j                s_j: variance of dimension j on the
                                                                              training rows
    mean_token              mean over t of e_pt / ||y_t - mu||^2              every token counts the same
    median_token            median over t of the same

A dimension without variance on the evaluated rows is left out, and so is a token that lies exactly at the mean.

One pass. With a fixed centre c (the held-out mean as the cache knows it; any would do) accumulate in float64 N, sums of
y - c and of its square by dimension, and of the errors; V_j = sum (y_j - c_j)^2 - (sum (y_j - c_j))^2 / N. All are
plain sums, so batches and processes merge by adding. A row's error and cosine are float32's, as its reconstruction is:
off by a few 1e-7 of themselves at most, and so is the FVU. The median over tokens is read from a histogram with 100
bins to a factor of ten, interpolated.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from common.errors import NumericalError, UsageError
from evaluate.metrics.bootstrap import DocumentSums, bootstrap_weights, intervals, sums_by_document
from evaluate.metrics.error_sums import error_sums
from evaluate.metrics.inputs import MetricInputs, Replicates
from evaluate.metrics.largest_rows import LargestRows
from evaluate.metrics.metric import Findings, Metric, Replayed, State, numbered

LARGEST_SHARE = 0.001
"""Of the rows: those left out of ``without_largest_rows``."""

_NO_VARIANCE = 1e-12
"""Of the second moment: what rounding may leave of no variance at all."""
_LOWEST = -5
_HIGHEST = 3
_BINS_A_DECADE = 100
_BINS = (_HIGHEST - _LOWEST) * _BINS_A_DECADE + 2
"""Bins of log10 of a token's error, and one below and above them."""
# Largest rows weighted at a time: 1,000 replicates of them are 8 MB.
_BLOCK_ROWS = 1024

Values = Float[np.ndarray, "replicates_plus_one ..."]


@dataclass(frozen=True)
class Fvu(Metric):
    """``centre`` is c above, ``scale`` s_j (None: the variance of the evaluated rows); ``rows`` how many there are."""

    centre: Float[Tensor, " d_target"]
    prefixes: tuple[int, ...]
    replicates: int
    rows: int
    seed: int = 0
    scale: Float[Tensor, " d_target"] | None = None

    @classmethod
    def create(cls, inputs: MetricInputs) -> "Fvu":
        """Around the held-out mean; whitened by the variances of the training rows, where the cache stores them."""
        trained = inputs.reader.statistics.target
        return cls(
            centre=inputs.centre,
            prefixes=inputs.dictionary.prefixes,
            replicates=inputs.settings.bootstrap,
            rows=inputs.held_out.counted,
            seed=inputs.settings.seed,
            scale=None if trained is None else torch.from_numpy(np.array(trained.variance)),
        )

    @cached_property
    def _sums(self) -> DocumentSums:
        prefixes = len(self.prefixes)
        width = len(self.centre)
        widths = {
            "rows": (),
            "away": (width,),
            "variance": (width,),
            "errors": (prefixes,),
            "cosines": (prefixes,),
            "errors_by_dimension": (prefixes, width),
            "token_errors": (prefixes,),
            "token_histogram": (prefixes, _BINS),
        }
        return DocumentSums(widths, self.replicates, self.seed, self.centre.device)

    @cached_property
    def _largest(self) -> LargestRows:
        values = {
            "target": ((len(self.centre),), torch.float32),
            "errors": ((len(self.prefixes),), torch.float64),
            "document": ((), torch.int64),
        }
        return LargestRows(ceil(LARGEST_SHARE * self.rows), values, self.centre.device)

    def start(self) -> State:
        """Sums of nothing, and no rows."""
        return self._sums.start() | self._largest.start()

    def measure(self, batch: Replayed) -> State:
        """The batch's sums, document by document, and its largest rows."""
        documents, document_index = numbered(batch.document)
        found = error_sums(
            batch.reconstructed, batch.target, document_index, documents=len(documents), centre=self.centre
        )
        relative = found.errors / found.squares[:, None]
        counts = (found.squares > 0)[:, None]
        values = {
            "rows": torch.ones_like(found.squares),
            "errors": found.errors,
            "cosines": found.cosines,
            "token_errors": torch.where(counts, relative, 0.0),
        }
        sums = sums_by_document(values, document_index, documents=len(documents)) | {
            "away": found.away,
            "variance": found.variance,
            "errors_by_dimension": found.errors_by_dimension,
            "token_histogram": _histograms(relative, counts, document_index, documents=len(documents)),
        }
        largest = self._largest.of_batch(
            found.squares, batch.row, target=batch.target, errors=found.errors, document=batch.document
        )
        return self._sums.of_batch(documents, sums) | largest

    def combine(self, total: State, addition: State) -> State:
        """Sums over documents are added, and of the largest rows the largest stay."""
        self._sums.combine(total, addition)
        return self._largest.combine(total, addition)

    def compute(self, state: State) -> Findings:
        """The estimates and their 95 % intervals.

        Raises UsageError where the rows have no variance, NumericalError for a reconstruction that is not finite.
        """
        sums = {name: array.cpu().numpy() for name, array in self._sums.finish(state).items()}
        variance = self._variance(sums)
        pooled = sums["errors"] / variance.sum(axis=1)[:, None]
        if not np.isfinite(pooled[0]).all():
            raise NumericalError(
                "The reconstruction of the held-out rows is not finite.",
                remedy="Train again with a lower learning rate, or evaluate an earlier checkpoint.",
            )

        with np.errstate(divide="ignore", invalid="ignore"):
            # A resampling that drew no document has no rows, and no cosine.
            cosine = sums["cosines"] / sums["rows"][:, None]
        forms = self._forms(sums, variance) | {"without_largest_rows": self._without_largest(state, sums)}
        return Findings(
            fields=_pooled_fields(pooled, cosine)
            | {
                "tokens_used": round(float(sums["rows"][0])),
                "fvu_forms": {name: _form_fields(values) for name, values in forms.items()},
            },
            replicates={"fvu": pooled, "cosine": cosine} | {f"fvu_{name}": values for name, values in forms.items()},
        )

    def _variance(self, sums: dict[str, Values]) -> Float[np.ndarray, "replicates_plus_one d_target"]:
        """V_j. A resampling that drew no document has none."""
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = sums["variance"] - sums["away"] ** 2 / sums["rows"][:, None]
        if not variance[0].sum() > _NO_VARIANCE * self._second_moment(sums).sum():
            raise UsageError("The held-out rows have no variance to explain.", remedy="Harvest more held-out text.")
        return variance

    def _second_moment(self, sums: dict[str, Values]) -> Float[np.ndarray, " d_target"]:
        centre = self.centre.double().cpu().numpy()
        return sums["variance"][0] + sums["rows"][0] * centre**2

    def _forms(
        self, sums: dict[str, Values], variance: Float[np.ndarray, "replicates_plus_one d_target"]
    ) -> dict[str, Replicates]:
        """Every form that needs nothing but sums."""
        varies = variance[0] > _NO_VARIANCE * self._second_moment(sums)
        scale = variance[0] if self.scale is None else self.scale.cpu().numpy()
        weight = np.divide(1.0, scale, out=np.zeros_like(scale), where=varies & (scale > 0))

        columns: dict[str, list[Values]] = {"mean_dimension": [], "median_dimension": [], "whitened": []}
        kept = variance[:, varies]
        with np.errstate(divide="ignore", invalid="ignore"):
            total = variance @ weight
            for prefix in range(len(self.prefixes)):
                errors = np.ascontiguousarray(sums["errors_by_dimension"][:, prefix])
                columns["whitened"].append((errors @ weight) / total)
                by_dimension = errors[:, varies] / kept
                columns["mean_dimension"].append(by_dimension.mean(axis=1))
                columns["median_dimension"].append(np.median(by_dimension, axis=1, overwrite_input=True))
            counted = sums["token_histogram"].sum(axis=2)
            mean_token = sums["token_errors"] / counted
        forms = {name: np.stack(found, axis=1) for name, found in columns.items()}
        return forms | {"mean_token": mean_token, "median_token": median_of_histograms(sums["token_histogram"])}

    def _without_largest(self, state: State, sums: dict[str, Values]) -> Replicates:
        """The FVU of the rows that are left, about their own mean: what the largest rows add is taken off the sums."""
        largest = self._largest.finish(state)
        rows = sums["rows"].copy()
        away = sums["away"].copy()
        squares = sums["variance"].sum(axis=1)
        errors = sums["errors"].copy()
        for first in range(0, len(largest["row"]), _BLOCK_ROWS):
            block = {name: array[first : first + _BLOCK_ROWS].cpu() for name, array in largest.items()}
            documents = block["document"].numpy().astype(np.uint64)
            weights = bootstrap_weights(documents, replicates=self.replicates, seed=self.seed)
            centred = block["target"].double() - self.centre.double().cpu()
            rows -= weights.sum(dim=1).numpy()
            away -= (weights @ centred).numpy()
            squares -= (weights @ block["distance"]).numpy()
            errors -= (weights @ block["errors"]).numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            return errors / (squares - (away**2).sum(axis=1) / rows)[:, None]


def _pooled_fields(fvu: Replicates, cosine: Replicates) -> dict[str, Any]:
    per_prefix = [float(value) for value in fvu[0]]
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
    }


def _form_fields(values: Replicates) -> dict[str, Any]:
    """null where there is nothing to measure: a handful of rows, all of which are among the largest."""
    known = [float(value) if np.isfinite(value) else None for value in values[0]]
    return {"value": known[-1], "per_prefix": known, "interval_per_prefix": intervals(values[1:])}


def _histograms(
    relative: Float[Tensor, "rows prefixes"],
    counts: Bool[Tensor, "rows 1"],
    document_index: Int[Tensor, " rows"],
    *,
    documents: int,
) -> Int[Tensor, "documents prefixes bins"]:
    """Of every document and prefix, how many tokens have an error in each bin."""
    prefixes = relative.shape[1]
    number = ((relative.log10() - _LOWEST) * _BINS_A_DECADE).floor() + 1
    number = number.nan_to_num(nan=0.0).clamp_(0, _BINS - 1).long()
    column = torch.arange(prefixes, device=document_index.device)
    flat = (document_index[:, None] * prefixes + column) * _BINS + number
    kept = flat[counts.expand_as(flat)]
    return kept.bincount(minlength=documents * prefixes * _BINS).view(documents, prefixes, _BINS)


def median_of_histograms(histogram: Float[np.ndarray, "... bins"]) -> Float[np.ndarray, "..."]:
    """Half of the counts lie below it; within a bin of log10 they are taken to lie evenly."""
    cumulative = np.cumsum(histogram, axis=-1)
    half = cumulative[..., -1:] / 2
    bin_number = np.argmax(cumulative >= half, axis=-1)[..., None]
    inside = np.take_along_axis(histogram, bin_number, axis=-1)
    below = np.take_along_axis(cumulative, bin_number, axis=-1) - inside
    with np.errstate(divide="ignore", invalid="ignore"):
        share = ((half - below) / inside)[..., 0]
    bins = bin_number[..., 0]
    between = 10.0 ** (_LOWEST + (bins - 1 + share) / _BINS_A_DECADE)
    # The bin below all others reaches down to zero, and of the one above them only its beginning is known.
    return np.where(bins == 0, share * 10.0**_LOWEST, np.where(bins == _BINS - 1, 10.0**_HIGHEST, between))
