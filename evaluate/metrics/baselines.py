"""What a transcoder must beat: reconstructions that use no features, from one pass of sums.

    mean        FVU of the held-out mean itself: 1, by definition
    bias_only   FVU of b_dec alone                         = 1 + N ||mu - b_dec||^2 / TSS
    affine      FVU of the best affine map of the source   W = (Cxx + lambda diag Cxx)^-1 Cxy,  b = mean(y) - mean(x) W
    pca         FVU of the first r principal axes         r = the prefix's mean L0, rounded; of an autoencoder alone
    bf16_floor  FVU of storing the target in bfloat16      = sum of (unit in the last place)^2 / 12 / TSS

The affine map is cross-fitted: documents fall into folds, and each fold is scored by the map that the others give, so
no row is explained by itself; ``affine_in_sample``, fitted to the scored rows, is the bound that no affine map beats.
Fit and score need only each fold's sums of x, y, x x', x y', ||y||^2 around the cache's means. The products of a batch
are float32's, and batches add up in float64: the affine FVU is right to 1e-5 (tested where dimensions differ a
thousandfold and nearly repeat one another). Of a few ridge strengths, each relative to a dimension's own variance, the
best one counts: the baseline is as strong as it gets. Of the symmetric x x' only the upper panels are kept.

Where source and target are one site, the best affine map is the identity, and says nothing. There the baseline is as
many numbers a row as the prefix uses features: the principal axes, cross-fitted like the map.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from evaluate.metrics.inputs import MetricInputs
from evaluate.metrics.metric import Findings, Metric, Replayed, State, mixed, numbered

# Four fits of three quarters of the rows each: more folds cost as many solutions more, and the map changes little.
_FOLDS = 4
# From none that matters to as strong as the source's own variance; the folds choose.
_RIDGES = (1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0)
# Of the mean variance: a dimension that never varies would otherwise make the system singular.
_LEAST_SPREAD = 1e-6
_BF16_MANTISSA_BITS = 7
_FLOAT_EXPONENT = 0x7F800000
# Rows of the product that are made at a time: at width 2,304 six panels leave out two fifths of the square.
_PANEL = 384
_IDENTITY = "source and target are one site, so it is the identity"


@dataclass(frozen=True)
class Baselines(Metric):
    """The centres are means of source and target, which keep the sums small; ``bias`` is the transcoder's b_dec.

    ``storage_floor`` is what the cache's own number format cost, measured as its held-out rows were written. Baselines
    are the cache's: beside a reference dictionary (``counted`` False) they are not measured again. ``prefixes`` is how
    many there are of an autoencoder, 0 for a transcoder.
    """

    source_centre: Float[Tensor, " d_source"]
    target_centre: Float[Tensor, " d_target"]
    bias: Float[Tensor, " d_target"]
    storage_floor: float | None = None
    counted: bool = True
    prefixes: int = 0

    @classmethod
    def create(cls, inputs: MetricInputs) -> "Baselines":
        """Around the means that the cache stores; with principal axes where the source is the target."""
        source = inputs.reader.statistics.source.mean
        stored = inputs.held_out.view.statistics.target
        identity = inputs.reader.identity
        reads_its_target = identity.get("source_site") == identity.get("target_site")
        return cls(
            source_centre=torch.from_numpy(np.array(source, dtype=np.float64)).to(inputs.device),
            target_centre=inputs.centre,
            bias=inputs.dictionary.b_dec,
            storage_floor=None if stored is None else stored.storage_floor,
            counted=not inputs.is_reference,
            prefixes=len(inputs.dictionary.prefixes) if reads_its_target else 0,
        )

    def start(self) -> State:
        """Sums of nothing, fold by fold."""
        if not self.counted:
            return {}
        d_source = len(self.source_centre)
        d_target = len(self.target_centre)
        shapes = {"n": (), "x": (d_source,), "y": (d_target,), "xx": (sum(_panel_sizes(d_source)),)}
        shapes |= {"xy": (d_source, d_target), "yy": (), "rounding": (), "l0": (self.prefixes,)}
        device = self.target_centre.device
        return {
            f"{name}{fold}": torch.zeros(shape, dtype=torch.float64, device=device)
            for fold in range(_FOLDS)
            for name, shape in shapes.items()
        }

    def measure(self, batch: Replayed) -> State:
        """The sums of the folds that the batch has documents of."""
        if not self.counted:
            return {}
        documents, document_index = numbered(batch.document)
        fold_of_document = torch.from_numpy((mixed(documents) % np.uint64(_FOLDS)).astype(np.int64))
        fold = fold_of_document.to(document_index.device)[document_index]
        state: State = {}
        for number in fold_of_document.unique().tolist():
            rows = (fold == number).nonzero()[:, 0]
            sums = self._sums(batch.source[rows], batch.target[rows])
            if self.prefixes:
                sums["l0"] = batch.l0[rows].sum(dim=0)
            state |= {f"{name}{number}": value for name, value in sums.items()}
        return state

    def _sums(self, source: Float[Tensor, "rows d_source"], target: Float[Tensor, "rows d_target"]) -> State:
        x = source - self.source_centre.float()
        y = target - self.target_centre.float()
        return {
            "n": torch.tensor(float(len(x)), dtype=torch.float64),
            "x": x.sum(0, dtype=torch.float64),
            "y": y.sum(0, dtype=torch.float64),
            "xx": upper_panels(x),
            "xy": x.T @ y,
            "yy": torch.linalg.vector_norm(y, dim=1).double().square().sum(),
            "rounding": rounding_errors(target).sum(),
        }

    def compute(self, state: State) -> Findings:
        """FVU of each baseline; the affine map is null, with the reason, where there are too few rows to fit one."""
        return Findings({"baselines": self._fields(state) if self.counted else None})

    def _fields(self, state: State) -> dict[str, Any]:
        folds = [_fold(state, number) for number in range(_FOLDS)]
        everything = _total(folds)
        variance = everything["yy"] - everything["y"].square().sum() / everything["n"]
        off = everything["y"] / everything["n"] - (self.bias.double() - self.target_centre.double())
        affine, strength, reason = _affine_fvu(folds, float(variance))
        if self.prefixes:
            affine = None
            strength = None
            reason = _IDENTITY
        return {
            "mean": 1.0,
            "bias_only": 1 + float(everything["n"] * off.square().sum() / variance),
            "affine": affine,
            "affine_in_sample": None if reason else _in_sample_fvu(everything, float(variance)),
            "affine_ridge": strength,
            "affine_reason": reason,
            **self._principal_fields(folds, float(variance)),
            "bf16_floor": float(everything["rounding"] / variance),
            "storage_floor": self.storage_floor,
        }

    def _principal_fields(self, folds: list[State], variance: float) -> dict[str, Any]:
        """FVU of each prefix's number of principal axes; null of a transcoder."""
        if not self.prefixes:
            return {"pca_per_prefix": None, "pca_rank_per_prefix": None}
        everything = _total(folds)
        ranks = [max(1, round(float(l0 / everything["n"]))) for l0 in everything["l0"]]
        fits = [{name: everything[name] - fold[name] for name in everything} for fold in folds]
        errors = torch.stack([_principal_errors(fit, fold) for fit, fold in zip(fits, folds, strict=True)]).sum(dim=0)
        return {
            "pca_per_prefix": [float(errors[min(rank, len(errors) - 1)]) / variance for rank in ranks],
            "pca_rank_per_prefix": ranks,
        }


def _principal_errors(fit: State, fold: State) -> Float[Tensor, " ranks"]:
    """The squared error on one fold of the first r principal axes of the others, about their mean; r = 0, 1, ..."""
    mean = fit["x"] / fit["n"].clamp(min=1)
    axes = torch.linalg.eigh(fit["xx"] - torch.outer(fit["x"], mean)).eigenvectors.flip(1)
    crossed = torch.outer(fold["x"], mean)
    spread = fold["xx"] - crossed - crossed.T + fold["n"] * torch.outer(mean, mean)
    explained = torch.linalg.vecdot(axes.T, axes.T @ spread)
    return spread.trace() - torch.cat([explained.new_zeros(1), explained.cumsum(0)])


def rounding_errors(target: Float[Tensor, "rows d_target"]) -> Float[Tensor, " rows"]:
    """The expected squared error of rounding each row to bfloat16: every value's last place, squared, over 12."""
    power = (target.view(torch.int32) & _FLOAT_EXPONENT).view(torch.float32)
    return (torch.linalg.vector_norm(power, dim=1).double() * 2.0**-_BF16_MANTISSA_BITS).square_() / 12


def upper_panels(x: Float[Tensor, "rows width"]) -> Float[Tensor, " packed"]:
    """The product of x with itself: of every panel of rows what lies right of its beginning, the diagonal included."""
    width = x.shape[1]
    packed = x.new_empty(sum(_panel_sizes(width)))
    for start, panel in zip(range(0, width, _PANEL), packed.split(_panel_sizes(width)), strict=True):
        torch.mm(x[:, start : start + _PANEL].T, x[:, start:], out=panel.view(-1, width - start))
    return packed


def whole_square(packed: Float[Tensor, " packed"], width: int) -> Float[Tensor, "width width"]:
    """The symmetric matrix of these panels."""
    square = packed.new_empty(width, width)
    for start, panel in zip(range(0, width, _PANEL), packed.split(_panel_sizes(width)), strict=True):
        square[start : start + _PANEL, start:] = panel.view(-1, width - start)
        square[start:, start : start + _PANEL] = panel.view(-1, width - start).T
    return square


def _panel_sizes(width: int) -> list[int]:
    return [min(_PANEL, width - start) * (width - start) for start in range(0, width, _PANEL)]


def _fold(state: State, number: int) -> State:
    """The sums of one fold, x x' written out."""
    sums = {name[:-1]: value for name, value in state.items() if name[-1] == str(number)}
    return sums | {"xx": whole_square(sums["xx"], len(sums["x"]))}


def _total(folds: list[State]) -> State:
    return {name: torch.stack([fold[name] for fold in folds]).sum(dim=0) for name in folds[0]}


def _affine_fvu(folds: list[State], variance: float) -> tuple[float | None, float | None, str | None]:
    """The FVU of the best of the ridge strengths and that strength, or why there is none."""
    everything = _total(folds)
    d_source = len(folds[0]["x"])
    fits = [{name: everything[name] - fold[name] for name in everything} for fold in folds]
    smallest = min(round(float(fit["n"])) for fit in fits)
    if smallest <= d_source:
        return None, None, f"{smallest} rows cannot fit a map of {d_source} inputs"
    errors = torch.stack([_ridge_errors(fit, fold, _RIDGES) for fit, fold in zip(fits, folds, strict=True)]).sum(dim=0)
    best = int(errors.argmin())
    return float(errors[best]) / variance, _RIDGES[best], None


def _in_sample_fvu(sums: State, variance: float) -> float:
    """What ordinary least squares on all rows leaves of their own variance."""
    xx, xy, unit = _centred(sums)
    penalty = _RIDGES[0] / unit.square()
    weight = torch.linalg.solve(xx + penalty.diag(), xy)
    explained = (weight * xy).sum() + penalty @ weight.square().sum(dim=1)
    return float(sums["yy"] - sums["y"] @ sums["y"] / sums["n"] - explained) / variance


def _centred(sums: State) -> tuple[Tensor, Tensor, Tensor]:
    """x x' and x y' about the means, and one over the unit of each dimension of x, for penalties relative to it."""
    mean_x = sums["x"] / sums["n"]
    xx = sums["xx"] - torch.outer(sums["x"], mean_x)
    xy = sums["xy"] - torch.outer(mean_x, sums["y"])
    spread = xx.diagonal()
    # Relative to each dimension's own variance, so that units of the source do not matter.
    unit = spread.clamp(min=_LEAST_SPREAD * float(spread.mean()) + torch.finfo(torch.float64).tiny).rsqrt()
    return xx, xy, unit


def _ridge_errors(fit: State, left_out: State, ridges: tuple[float, ...]) -> Float[Tensor, " ridges"]:
    """The squared error on one fold of the maps that the sums of the others give, one for each ridge strength.

    The map of strength r is W = V (L + r)^-1 Z, where V are the principal axes of x in units of each dimension's own
    spread, L what x varies along them, and Z = V' Cxy. What depends on r is then a sum over axes: one decomposition
    serves all strengths, in the time of about four solutions of the system.
    """
    mean_x = fit["x"] / fit["n"]
    mean_y = fit["y"] / fit["n"]
    xx, xy, unit = _centred(fit)
    along, axes = torch.linalg.eigh(unit[:, None] * xx * unit)
    axes *= unit[:, None]
    target = axes.T @ xy
    covered = torch.linalg.vecdot(target, axes.T @ left_out["xy"])
    power = (axes.T @ left_out["xx"] @ axes).mul_(target @ target.T)
    errors: list[Tensor] = []
    for ridge in ridges:
        gain = 1 / (along + ridge)
        bias = mean_y - (mean_x @ axes * gain) @ target
        predicted = (left_out["x"] @ axes * gain) @ target
        explained = 2 * (bias @ left_out["y"] + gain @ covered)
        errors.append(
            left_out["yy"] - explained + left_out["n"] * (bias @ bias) + 2 * (bias @ predicted) + gain @ power @ gain
        )
    return torch.stack(errors)
