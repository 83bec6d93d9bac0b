"""One step of a cross-layer transcoder: the steps of its layers, which meet in the reconstructions.

    y_t,p = b_dec_t (+ x_t @ W_skip_t) + sum over s of a_s[:, :p] @ W_dec_s->t[:p]
    loss  = sum over layers t, prefixes p of  w_p * SSE_t,p / (rows * variance_t)

Each source layer is a transcoder whose target is the targets that it writes to, side by side: encoding, sparse decode,
gradients, projection, the update and the dead are those of one. Only the errors are not its own. Each layer's
gradient is clipped by itself, so that with a window of 0 every layer is trained exactly as it would be alone. Dealt
over processes (``transcoder/sharded.py``), each has some features of every layer, and the sums of all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from common.distributed import Ranks
from train.arrays.batch_share import BatchShare
from train.arrays.optim import to_device
from train.arrays.parameters import Parameters
from train.arrays.workspace import Workspace
from train.dead.features import Dead
from train.kinds.joint_state import JointState
from train.loss import Decoded, StepResult, decode, differentiate, encode, unexplained
from train.objective import Recipe
from train.record.step_metrics import StepMetrics
from train.state import State
from train.step import StepForm, counted_, dead_of, finish_, form_of, numbers_and_order
from transcoder.cross_layer import Reach, candidates, largest_over_layers
from transcoder.rules.rule import Rule
from transcoder.rules.topk import TopK
from transcoder.sharded import UNSHARDED, Shard


@dataclass(frozen=True)
class JointRecipe:
    """What the steps have in common. ``over_layers``: the rule's ``top_k`` a layer are selected over all of them."""

    recipes: tuple[Recipe, ...]
    """One a layer: they differ in what the target's dimensions count."""
    reach: Reach
    over_layers: bool

    def rule_of(self, number: int, weights: Parameters) -> Rule:
        """A layer's own rule, or all that these of its features could contribute to a selection over layers."""
        nested = self.recipes[number].nested
        rule = nested.rule_of(weights)
        if not self.over_layers:
            return rule
        return TopK(candidates(rule.kept(1), layers=self.reach.layers, dict_size=weights.b_enc.numel()))

    @property
    def over_all(self) -> int:
        """How many features of a row a selection over layers keeps."""
        return self.recipes[0].nested.rule.kept(1) * self.reach.layers


@torch.no_grad()
def joint_step(
    state: JointState,
    sources: Sequence[Float[Tensor, "rows d_source"]],
    *,
    targets: Sequence[Float[Tensor, "rows d_target"]],
    recipe: JointRecipe,
    workspaces: Sequence[Workspace],
    ranks: Ranks,
    shard: Shard = UNSHARDED,
) -> StepMetrics:
    """Advance all layers by a batch. The metrics are means over layers; L0 is of a layer.

    With a ``shard``, every process has all rows, and ``state`` is that of its own features of every layer.
    """
    reach = recipe.reach
    settings = recipe.recipes[0].settings
    step = state.step  # before the first layer's update counts it
    share = BatchShare.from_rows(len(sources[0]), ranks, sources[0].device)
    if not share.rows:
        sources, targets = ([rows.new_zeros(1, rows.shape[1]) for rows in layers] for layers in (sources, targets))
    forms = [form_of(layer, settings, share=share, shard=shard) for layer in state.layers]
    dead = [dead_of(layer, settings, form) for layer, form in zip(state.layers, forms, strict=True)]
    watch = [layer_dead.features for layer_dead in dead]
    decoded, watched = _forward(
        state, sources, recipe=recipe, workspaces=workspaces, watch=watch, share=share, shard=shard
    )

    total, squared, residuals = _errors(state, decoded, targets, recipe=recipe)
    metrics: list[StepMetrics] = []
    for number, layer in enumerate(decoded):
        result = differentiate(
            replace(layer, sums=reach.side_by_side(total, number)),
            sse=squared[number],
            residual=reach.side_by_side(residuals, number),
            loss=recipe.recipes[number].loss_at(step),
            gradients=workspaces[number].gradients,
            project=True,
            watched=watched[number],
            share=share,
            shard=shard,
        )
        # What a layer gets from others is theirs: its own bias alone stands for what all features share.
        result.gradients.b_dec[reach.width :] = 0
        metrics.append(
            _finish(
                state.layers[number],
                layer.source,
                result,
                dead[number],
                forms[number],
                recipe=recipe.recipes[number],
                workspace=workspaces[number],
                share=share,
                shard=shard,
            )
        )
    return _mean(metrics)


def _errors(
    state: JointState,
    decoded: Sequence[Decoded],
    targets: Sequence[Float[Tensor, "rows d_target"]],
    *,
    recipe: JointRecipe,
) -> tuple[Float[Tensor, "layers rows groups d_target"], list[Tensor], Float[Tensor, "layers rows d_target"]]:
    """Where the layers meet: sums of gradients, every prefix's squared error, and the whole dictionary's residual, of
    every layer's target."""
    reach = recipe.reach
    sums = decoded[0].sums
    total = torch.zeros(reach.layers, *sums.shape[:2], reach.width, dtype=sums.dtype, device=targets[0].device)
    for number, layer in enumerate(decoded):
        reach.add_(total, layer.sums, number)
    found = [
        own.nested.grad_sums_(
            total[number], unexplained(state.layers[number].weights, decoded[number].source, target=target)
        )
        for number, (own, target) in enumerate(zip(recipe.recipes, targets, strict=True))
    ]
    return total, [squared for squared, _ in found], torch.stack([residual for _, residual in found])


def _finish(
    state: State,
    source: Float[Tensor, "rows d_source"],
    result: StepResult,
    dead: Dead,
    form: StepForm,
    *,
    recipe: Recipe,
    workspace: Workspace,
    share: BatchShare,
    shard: Shard,
) -> StepMetrics:
    """A layer's update and what follows it."""
    settings = recipe.settings
    device = source.device
    numbers, order = numbers_and_order(state, settings, form, share)
    measured = finish_(
        state,
        source,
        None if numbers is None else to_device(numbers, device),
        None if order is None else to_device(order, device),
        result=result,
        dead=dead,
        form=form,
        recipe=recipe,
        workspace=workspace,
        share=share,
        shard=shard,
    )
    return counted_(state, measured, settings, share)


def _forward(
    state: JointState,
    sources: Sequence[Float[Tensor, "rows d_source"]],
    *,
    recipe: JointRecipe,
    workspaces: Sequence[Workspace],
    watch: Sequence[Tensor],
    share: BatchShare,
    shard: Shard,
) -> tuple[list[Decoded], list[Tensor]]:
    """Every layer's sparse decode, and the pre-activations of its dead features."""
    prefixes = recipe.recipes[0].nested.prefixes
    # Over layers, processes compete once for all of them.
    rivals = UNSHARDED if recipe.over_layers else shard
    encoded = []
    ordered = zip(state.layers, sources, workspaces, watch, strict=True)
    for number, (layer, source, workspace, silent) in enumerate(ordered):
        rounded = workspace.compute_weights(layer.weights)
        read = source.to(rounded.W_enc.dtype)
        rule = recipe.rule_of(number, layer.weights)
        code, seen = encode(rounded, read, rule=rule, pre=workspace.pre, watch=silent, share=share, shard=rivals)
        encoded.append((rounded, read, rule, code, seen.to(layer.weights.b_enc.dtype)))
    codes = [code for *_, code, _ in encoded]
    if recipe.over_layers:
        codes = largest_over_layers(codes, count=recipe.over_all, ranks=shard)
    decoded = [
        decode(rounded, read, code=code, rule=rule, prefixes=prefixes, shard=shard)
        for (rounded, read, rule, _, _), code in zip(encoded, codes, strict=True)
    ]
    return decoded, [seen for *_, seen in encoded]


def _mean(metrics: Sequence[StepMetrics]) -> StepMetrics:
    """Of the layers; the gradient's norm is that of all of them. Layer by layer, the whole dictionary's FVU."""
    first = metrics[0]
    penalties = [own.sparsity_loss for own in metrics if own.sparsity_loss is not None]
    return StepMetrics(
        l2_loss=torch.stack([own.l2_loss for own in metrics]).mean(),
        aux_loss=torch.stack([own.aux_loss for own in metrics]).mean(),
        batch_fvu=torch.stack([own.batch_fvu for own in metrics]).mean(dim=0),
        l0=torch.stack([own.l0 for own in metrics]).mean(dim=0),
        dead=torch.stack([own.dead for own in metrics]).mean(),
        gradient_norm=torch.linalg.vector_norm(torch.stack([own.gradient_norm for own in metrics])),
        lr=first.lr,
        sparsity_loss=torch.stack(penalties).mean() if penalties else None,
        batch_fvu_per_layer=torch.stack([own.batch_fvu[-1] for own in metrics]),
    )
