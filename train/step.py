"""One step of training: state and batch in, state advanced in place, metrics out. No files, no clock.

One process alone waits for the device only to learn how many features are dead: every step while some are, and while
none is only when the feature that has been silent longest may have become so.

loss = l2_loss + aux_loss
l2_loss  = weighted mean over prefixes of fvu_p,    fvu_p = SSE_p / (rows * target variance of the cache)
aux_loss as train/aux_loss.py has it, where a feature is dead
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from common.distributed import Ranks
from train.arrays.batch_share import BatchShare
from train.arrays.optim import Moments, in_one_pass, learning_rate, update_
from train.arrays.parameters import Parameters
from train.arrays.workspace import Workspace
from train.aux_loss import add_auxiliary_, auxiliary, auxiliary_scale, spread, variation
from train.dead import count_tokens_, dead_features, dead_share, tokens_left
from train.loss import NestedLoss, StepResult, nested_step
from train.resolved import ResolvedSettings
from train.revive import may_revive, revive_
from transcoder.constants import constant
from transcoder.rules.registry import make_rule
from transcoder.rules.rule import Rule
from transcoder.sharded import WHOLE, Shard


@dataclass
class State:
    """All that a run changes: a checkpoint holds exactly this. ``step`` counts steps, and so batches, done."""

    weights: Parameters
    moments: Moments
    since_fired: Int[Tensor, " dict_size"]
    step: int = 0
    tokens: int = 0
    none_dead_before: int = 0
    """No feature can be dead before ``tokens`` is this. Not in checkpoints: a restart begins with 0, which is safe."""

    def dealt(self, shard: Shard, *, device: str) -> "State":
        """This process's features of it, on a device."""
        return self._mapped(
            lambda arrays: {name: array.to(device) for name, array in shard.take(arrays).items()},
            shard.own(self.since_fired).to(device),
        )

    def whole(self, shard: Shard, *, dict_size: int) -> "State":
        """Put together again from every process's features, in main memory."""
        since_fired = shard.interleave(self.since_fired, dict_size).cpu()
        return self._mapped(lambda arrays: shard.whole(arrays, dict_size=dict_size), since_fired)

    def _mapped(self, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], since_fired: Tensor) -> "State":
        """The same with ``change`` done to the weights and to both moments."""
        weights = Parameters(**change(self.weights.tensors()))
        moments = Moments(change(self.moments.first), change(self.moments.second))
        return State(weights, moments, since_fired, self.step, self.tokens)


@dataclass(frozen=True)
class Recipe:
    """What a run's steps have in common."""

    settings: ResolvedSettings
    nested: NestedLoss

    @staticmethod
    def of(settings: ResolvedSettings, *, target_variance: float) -> "Recipe":
        """``target_variance`` is the sum over the target's dimensions, in the units of training."""
        nested = NestedLoss(
            prefixes=settings.prefixes,
            rule=rule_of(settings),
            target_variance=target_variance,
            prefix_weights=settings.prefix_weights,
        )
        return Recipe(settings, nested)

    def loss_at(self, step: int) -> NestedLoss:
        """What a step minimises: a penalty on L0 rises from nothing, so that features form before they are pruned."""
        warmup = self.settings.sparsity_warmup_steps
        return replace(self.nested, sparsity=self.settings.sparsity * min(1.0, (step + 1) / max(1, warmup)))


def rule_of(settings: ResolvedSettings) -> Rule:
    """The rule that a run selects by."""
    has_target = settings.l0_penalty == "target"
    return make_rule(settings.activation, settings.top_k, bandwidth=settings.bandwidth, has_target=has_target)


@dataclass(frozen=True)
class StepMetrics:
    """What one step measures, still on the device. ``batch_fvu`` is of the batch's rows, over the cache's variance."""

    l2_loss: Float[Tensor, ""]
    aux_loss: Float[Tensor, ""]
    batch_fvu: Float[Tensor, " prefixes"]
    l0: Float[Tensor, " prefixes"]
    dead: Float[Tensor, ""]
    gradient_norm: Float[Tensor, ""]
    lr: float
    sparsity_loss: Float[Tensor, ""] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Names and plain numbers, as the log and W&B have them."""
        l2_loss = float(self.l2_loss)
        aux_loss = float(self.aux_loss)
        batch_fvu = self.batch_fvu.tolist()
        penalty = {} if self.sparsity_loss is None else {"sparsity_loss": float(self.sparsity_loss)}
        return {
            "loss": l2_loss + aux_loss + sum(penalty.values()),
            "l2_loss": l2_loss,
            "aux_loss": aux_loss,
            **penalty,
            "batch_fvu": batch_fvu[-1],
            "batch_fvu_min": min(batch_fvu),
            "batch_fvu_max": max(batch_fvu),
            "batch_fvu_mean": sum(batch_fvu) / len(batch_fvu),
            "batch_fvu_per_prefix": batch_fvu,
            "l0": float(self.l0[-1]),
            "l0_per_prefix": self.l0.tolist(),
            "dead": float(self.dead),
            "gradient_norm": float(self.gradient_norm),
            "lr": self.lr,
        }


@torch.no_grad()
def train_step(
    state: State,
    source: Float[Tensor, "rows d_source"],
    *,
    target: Float[Tensor, "rows d_target"],
    recipe: Recipe,
    workspace: Workspace,
    ranks: Ranks,
    shard: Shard = WHOLE,
) -> StepMetrics:
    """Advance ``state`` by this process's rows of a batch; all processes together step by the whole batch.

    With a ``shard``, every process has all rows, and ``state`` is that of its own features. A process without rows,
    as the end of an epoch may leave it, computes on a row of zeros that counts nothing.
    """
    settings = recipe.settings
    dead = _dead(state, recipe)
    dead_count = shard.total(dead.numel(), dead.device) if _wants_dead(settings) else 0
    share = BatchShare.of(len(source), ranks, source.device)
    if not share.rows:
        source, target = source.new_zeros(1, source.shape[1]), target.new_zeros(1, target.shape[1])
    if settings.subtract_b_dec:
        source = source - state.weights.b_dec
    result = nested_step(
        state.weights,
        source,
        target=target,
        loss=recipe.loss_at(state.step),
        workspace=workspace,
        project=True,
        watch=dead,
        share=share,
        shard=shard,
    )
    aux_loss = _add_auxiliary_(
        state.weights,
        source,
        dead=dead,
        dead_count=dead_count,
        result=result,
        recipe=recipe,
        share=share,
        dtype=workspace.pre.dtype,
        shard=shard,
    )
    if settings.subtract_b_dec:
        add_gradient_through_source_(result.gradients, state.weights, shard=shard)
    fvu = result.sse * bool(share.rows) / (max(1, share.batch_rows) * recipe.nested.target_variance)
    l0 = result.l0 * share.fraction
    if ranks.world > 1 or not share.rows:
        ranks.sum_all_([array.mul_(share.fraction) for array in result.gradients.tensors().values()] + [fvu, l0])
    fired = ranks.any_of(result.fired & bool(share.rows))
    norm = update_(
        state.weights,
        result.gradients,
        moments=state.moments,
        settings=settings,
        step=state.step,
        rounded=workspace.weights,
        shard=shard,
    )
    workspace.is_current = in_one_pass(state.weights)
    count_tokens_(state.since_fired, fired, tokens=share.batch_rows)
    metrics = StepMetrics(
        l2_loss=(fvu * constant(recipe.nested.prefix_weights, fvu.dtype, fvu.device)).sum(),
        aux_loss=aux_loss,
        batch_fvu=fvu,
        l0=l0,
        dead=shard.mean(dead_share(state.since_fired, after_tokens=settings.dead_after_tokens), len(state.since_fired)),
        gradient_norm=norm,
        lr=learning_rate(settings, state.step),
        sparsity_loss=result.penalty,
    )
    if dead_count and share.batch_rows and may_revive(settings, state.step):
        still_dead = dead[~fired[dead]]
        revive_(state.weights, source, result=result, dead=still_dead, step=state.step, share=share, shard=shard)
        state.since_fired[still_dead] = 0
        workspace.is_current = False
    state.step += 1
    state.tokens += share.batch_rows
    return metrics


def _dead(state: State, recipe: Recipe) -> Int[Tensor, " dead"]:
    """The features that have been silent for too long."""
    after_tokens = recipe.settings.dead_after_tokens
    none = state.since_fired.new_empty(0, dtype=torch.int64)
    if not _wants_dead(recipe.settings) or state.tokens < state.none_dead_before:
        return none
    left = tokens_left(state.since_fired, after_tokens=after_tokens)
    state.none_dead_before = state.tokens + left
    return none if left > 0 else dead_features(state.since_fired, after_tokens=after_tokens)


def _wants_dead(settings: ResolvedSettings) -> bool:
    """Whether anything is done about dead features."""
    return settings.revive or bool(settings.aux_alpha)


def add_gradient_through_source_(gradients: Parameters, weights: Parameters, *, shard: Shard) -> None:
    """The gradient that b_dec gets by being taken off the source: pre = W_enc (source - b_dec) + b_enc."""
    gradients.b_dec.sub_(shard.sum_(gradients.b_enc @ weights.W_enc))


def _add_auxiliary_(
    weights: Parameters,
    source: Float[Tensor, "rows d_source"],
    *,
    dead: Int[Tensor, " dead"],
    dead_count: int,
    result: StepResult,
    recipe: Recipe,
    share: BatchShare,
    dtype: torch.dtype,
    shard: Shard,
) -> Float[Tensor, ""]:
    """Add the auxiliary loss's gradient to the step's; returns the loss of the whole batch.

    Nothing is done where no feature is dead or there are no rows. The gradient is divided by the share's fraction,
    by which the step multiplies it again. ``dead_count`` is over all processes' features.
    """
    if not (recipe.settings.aux_alpha and dead_count and share.batch_rows):
        return result.sse.new_zeros(())
    extra = auxiliary(
        weights,
        source,
        pre=result.watched,
        residual=result.residual,
        dead=dead,
        top_k=recipe.settings.aux_top_k,
        dtype=dtype,
        shard=shard,
    )
    statistics = spread(result.residual) * bool(share.rows)
    error = extra.error * bool(share.rows)
    share.ranks.sum_all_([statistics, error])
    scale = auxiliary_scale(
        alpha=recipe.settings.aux_alpha,
        dead=dead_count,
        top_k=recipe.settings.aux_top_k,
        variation=variation(statistics),
    )
    add_auxiliary_(result.gradients, extra, dead=dead, scale=scale / (share.fraction or 1.0))
    return error * scale
