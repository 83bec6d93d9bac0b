"""The training loss, over all prefixes and dimensions, and what all steps of a run have in common.

    loss = sum over prefixes p of w_p * SSE_p / (rows * target_variance)   with  sum of w_p = 1
    SSE_p = sum over rows and dimensions j of (c_j * error_j)^2

where ``target_variance`` is the cache's total variance a row: the loss is the weighted mean of the batch's fractions of
variance unexplained, so learning rates carry over between layers and models. With V_j the variance of dimension j,

    c_j^2 = 1 - balance + balance * mean(V) / V_j

so the loss is  (1 - balance) * pooled FVU + balance * whitened FVU.  With balance 0 every squared unit counts the same,
and in some layers two dimensions and a dozen rows decide everything; with balance 1 every dimension counts the same,
and those large ones are hardly trained.

A rule that trains thresholds adds its own penalty on L0 (transcoder/rules/threshold.py).
"""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from train.arrays.parameters import Parameters
from train.resolved import ResolvedSettings
from transcoder.decode import grad_sums_
from transcoder.rules.registry import make_rule
from transcoder.rules.rule import Rule

_MIN_VARIANCE = 1e-6
"""Share of the mean variance: a dimension without variance must not get an unlimited weight."""


@dataclass(frozen=True)
class NestedLoss:
    """The loss of a step, and its selection rule. ``prefix_weights`` sum to 1; ``sparsity`` is the weight of the rule's
    penalty on L0, if it has one; ``dimension_scale`` is c, None if all of it is 1."""

    prefixes: tuple[int, ...]
    rule: Rule
    target_variance: float
    prefix_weights: tuple[float, ...]
    sparsity: float = 0.0
    dimension_scale: Float[Tensor, " d_target"] | None = None

    def rule_of(self, weights: Parameters) -> Rule:
        """The rule, with the trained thresholds if it has some."""
        return self.rule if weights.threshold is None else self.rule.with_threshold(weights.threshold)

    def weight_of(self, rows: int) -> tuple[float, ...]:
        """The weight of each prefix's squared error in the loss of a batch with this many rows."""
        return tuple(weight / (rows * self.target_variance) for weight in self.prefix_weights)

    def grad_sums_(
        self, sums: Float[Tensor, "rows groups d_target"], left: Float[Tensor, "rows d_target"]
    ) -> tuple[Float[Tensor, " prefixes"], Float[Tensor, "rows d_target"]]:
        """Turn group sums into sums of gradients in place; every prefix's SSE, and the last one's plain residual."""
        scale = None if self.dimension_scale is None else self.dimension_scale.to(sums.dtype)
        return grad_sums_(sums, left, weights=self.weight_of(len(left)), scale=scale)


@dataclass(frozen=True)
class Recipe:
    """What a run's steps have in common."""

    settings: ResolvedSettings
    nested: NestedLoss

    @staticmethod
    def from_settings(
        settings: ResolvedSettings, *, variance: Float[Tensor, " d_target"], device: str = "cpu"
    ) -> "Recipe":
        """``variance`` is that of the target's dimensions, in the units of training, in main memory."""
        scale = dimension_scale(variance, settings.dimension_balance)
        nested = NestedLoss(
            prefixes=settings.prefixes,
            rule=rule_of(settings),
            target_variance=float(variance.sum()),
            prefix_weights=settings.prefix_weights,
            dimension_scale=None if scale is None else scale.to(device),
        )
        return Recipe(settings, nested)

    def loss_at(self, step: int) -> NestedLoss:
        """The loss of a step: a penalty on L0 rises from 0, so that features form before they are pruned."""
        warmup = self.settings.sparsity_warmup_steps
        return replace(self.nested, sparsity=self.settings.sparsity * min(1.0, (step + 1) / max(1, warmup)))


def rule_of(settings: ResolvedSettings) -> Rule:
    """The selection rule of a run."""
    has_target = settings.l0_penalty == "target"
    return make_rule(settings.activation, settings.top_k, bandwidth=settings.bandwidth, has_target=has_target)


def dimension_scale(variance: Float[Tensor, " d_target"], balance: float) -> Float[Tensor, " d_target"] | None:
    """c in float32; None for a balance of 0. A dimension that hardly varies counts like one with a little variance."""
    if not balance:
        return None
    variance = variance.double()
    mean = variance.mean()
    return (1 - balance + balance * mean / variance.clamp(min=_MIN_VARIANCE * float(mean))).sqrt().float()


def equal_weights(prefixes: tuple[int, ...]) -> tuple[float, ...]:
    """Every prefix counts the same, as in the paper."""
    return (1.0 / len(prefixes),) * len(prefixes)
