"""Logistic regressions: dense and joint over classes, sparse with an L1 penalty, and on k chosen features each.

One against the rest, for every class c over rows i with labels y in {0, 1}:

    loss_c = mean_i log(1 + exp(-(2 y_ic - 1) (x_i . w_c + b_c))) + penalty(w_c)

All are convex, start from zero and use full batches, so equal inputs give equal fits.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from transcoder.decode import transpose, weighted_sums
from transcoder.sparse_code import SparseCode

LBFGS_ITERATIONS = 200
NEWTON_ITERATIONS = 30
"""Far more than any of these fits needs: they stop when the tolerance is reached."""
FISTA_ITERATIONS = 600
"""On real models the loss was then within 2e-4 of an exact solver's; 24 or 25 of 26 letters had its main features."""


@dataclass(frozen=True)
class Probes:
    """One linear classifier a class; a row is of class c where its logit is positive."""

    weight: Float[Tensor, "d classes"]
    bias: Float[Tensor, " classes"]

    def logits(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows classes"]:
        """``x . w_c + b_c`` for every class."""
        return x @ self.weight + self.bias


def fit_dense(x: Float[Tensor, "rows d"], labels: Bool[Tensor, "rows classes"]) -> Probes:
    """One probe a class on ``x`` centred and divided by its overall spread, with the ridge 1 / (2 rows) ||w||^2."""
    mean = x.mean(0)
    # One scale for all dimensions: one each would change which directions the ridge prefers.
    scale = x.std().clamp_min(1e-12)
    scaled = (x - mean) / scale
    wanted = labels.to(x.dtype)
    weight = x.new_zeros(x.shape[1], labels.shape[1])
    bias = x.new_zeros(labels.shape[1])

    def loss() -> Tensor:
        fit = binary_cross_entropy_with_logits(scaled @ weight + bias, wanted, reduction="sum")
        return (fit + 0.5 * weight.square().sum()) / len(x)

    _minimise(loss, [weight, bias])
    weight = weight / scale
    return Probes(weight=weight, bias=bias - mean @ weight)


@dataclass(frozen=True)
class ChosenProbes:
    """One classifier a class, each on columns of its own."""

    weight: Float[Tensor, "classes k"]
    bias: Float[Tensor, " classes"]

    def logits(self, x: Float[Tensor, "classes rows k"]) -> Float[Tensor, "classes rows"]:
        """Every class's logits on its own columns."""
        return torch.einsum("crk,ck->cr", x, self.weight) + self.bias[:, None]


def fit_chosen(x: Float[Tensor, "classes rows k"], labels: Bool[Tensor, "classes rows"]) -> ChosenProbes:
    """One regression a class on that class's own k columns, which are scaled to unit spread for the same ridge.

    By Newton's method: with so few columns the curvature of all classes is solved at once.
    """
    scale = x.square().mean(1).sqrt().clamp_min(1e-12)
    columns = torch.cat([x / scale[:, None], x.new_ones(*x.shape[:2], 1)], dim=2).double()
    wanted = labels.double()
    ridge = columns.new_ones(columns.shape[2])
    ridge[-1] = 0  # the bias has none

    def loss(weight: Float[Tensor, "classes columns"]) -> Float[Tensor, " classes"]:
        logits = torch.einsum("crk,ck->cr", columns, weight)
        fit = binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(dim=1)
        return fit + 0.5 * (ridge * weight.square()).sum(dim=1)

    weight = columns.new_zeros(len(x), columns.shape[2])
    before = loss(weight)
    for _ in range(NEWTON_ITERATIONS):
        predicted = torch.sigmoid(torch.einsum("crk,ck->cr", columns, weight))
        gradient = torch.einsum("crk,cr->ck", columns, predicted - wanted) + ridge * weight
        curvature = torch.einsum("crk,cr,crj->ckj", columns, predicted * (1 - predicted), columns) + ridge.diag()
        # If all rows are predicted with certainty, the curvature rounds to 0, and must not be divided by.
        curvature.diagonal(dim1=1, dim2=2).add_(1e-9)
        step = torch.linalg.solve(curvature, gradient[..., None])[..., 0]
        weight = _downhill(weight, step, loss, before)
        after = loss(weight)
        if float((before - after).max()) <= 1e-9 * x.shape[1]:
            break
        before = after
    return ChosenProbes(weight=weight[:, :-1].to(x.dtype) / scale, bias=weight[:, -1].to(x.dtype))


def _downhill(
    weight: Float[Tensor, "classes columns"],
    step: Float[Tensor, "classes columns"],
    loss: Callable[[Tensor], Tensor],
    before: Float[Tensor, " classes"],
) -> Float[Tensor, "classes columns"]:
    """One step, halved for each class until the loss falls: far from the minimum a full step may raise it."""
    size = torch.ones_like(before)
    for _ in range(30):
        # Up to rounding: at the minimum a step changes only the last digit, up or down.
        rises = loss(weight - size[:, None] * step) > before * (1 + 1e-12)
        if not rises.any():
            break
        size = torch.where(rises, size / 2, size)
    return weight - size[:, None] * step


def fit_l1(
    code: SparseCode, labels: Bool[Tensor, "rows classes"], *, dict_size: int, share: float
) -> Float[Tensor, "dict_size classes"]:
    """L1-penalised weights on sparse activations, by FISTA (Beck and Teboulle 2009), the bias fitted along.

    The penalty of a class is ``share`` of the smallest that would leave it no weight at all, so that neither the scale
    of the activations nor the rarity of the class changes what is chosen. Every feature has a step of its own: for
    x >= 0, X^T X is at most the diagonal matrix of X^T X 1, so a few huge rows slow down the features that fire on them
    and no others. ``code`` must not be negative.
    """
    wanted = labels.to(code.values.dtype)
    rows = len(labels)
    by_feature = _transposed(code, dict_size)
    # The bias begins at the log odds, which a class of no word, or of all words, does not have.
    rate = wanted.mean(0).clamp(1e-6, 1 - 1e-6)
    penalty = share * sparse_times(by_feature, wanted - rate).abs().amax(0) / rows
    # Half of the inverse curvature for each of the two blocks, weights and bias, so that both steps at once cannot
    # overshoot. A feature that never fires has no curvature, and no gradient to step along.
    row_sums = sparse_times(code, code.values.new_ones(dict_size, 1))
    step = 2.0 * rows / sparse_times(by_feature, row_sums).clamp_min(1e-30)
    point = _Point(wanted.new_zeros(dict_size, wanted.shape[1]), torch.log(rate / (1 - rate)))
    pushed = point
    momentum = 1.0
    for _ in range(FISTA_ITERATIONS):
        residual = torch.sigmoid(sparse_times(code, pushed.weight) + pushed.bias) - wanted
        moved = pushed.weight - step * sparse_times(by_feature, residual) / rows
        shrunk = torch.sign(moved) * (moved.abs() - step * penalty).clamp_min(0)
        new = _Point(shrunk, pushed.bias - 2.0 * residual.mean(0))
        next_momentum = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        pushed = new.pushed_from(point, (momentum - 1) / next_momentum)
        point = new
        momentum = next_momentum
    return point.weight


@dataclass(frozen=True)
class _Point:
    """An iterate of FISTA."""

    weight: Float[Tensor, "dict_size classes"]
    bias: Float[Tensor, " classes"]

    def pushed_from(self, before: "_Point", push: float) -> "_Point":
        return _Point(self.weight + push * (self.weight - before.weight), self.bias + push * (self.bias - before.bias))


def _transposed(code: SparseCode, dict_size: int) -> SparseCode:
    """The same matrix feature by feature: its ``features`` are row numbers."""
    by_feature = transpose(code, dict_size)
    order = by_feature.order.long()
    return SparseCode(code.values[order], code.rows()[order], by_feature.offsets)


def f1_scores(
    predicted: Bool[Tensor, "rows classes"], labels: Bool[Tensor, "rows classes"]
) -> Float[Tensor, " classes"]:
    """2 TP / (2 TP + FP + FN) of each class; 0 where the class neither occurs nor is predicted."""
    hits = (predicted & labels).sum(0).double()
    return (2 * hits / (predicted.sum(0) + labels.sum(0)).clamp_min(1)).float()


def sparse_times(matrix: SparseCode, weight: Float[Tensor, "columns classes"]) -> Float[Tensor, "rows classes"]:
    """The sparse matrix times ``weight``."""
    return weighted_sums(weight, matrix.features, matrix.values, offsets=matrix.offsets)


def _minimise(loss: Callable[[], Tensor], parameters: list[Tensor]) -> None:
    """Move ``parameters`` in place to the minimum of the convex ``loss``."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=LBFGS_ITERATIONS, tolerance_change=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return float(value.detach())

    optimizer.step(closure)
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None


def label_matrix(letter: Int[Tensor, " rows"], classes: int) -> Bool[Tensor, "rows classes"]:
    """True where row i is of class c."""
    return letter[:, None] == torch.arange(classes, device=letter.device)
