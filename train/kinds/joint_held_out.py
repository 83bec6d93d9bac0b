"""The held-out FVU of several layers that are trained together: the mean over layers, prefix by prefix."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from train.arrays.parameters import Parameters
from train.kinds.joint_state import JointState
from train.kinds.joint_step import JointRecipe
from train.record.held_out_fvu import HeldOut
from transcoder.cross_layer import largest_over_layers
from transcoder.decode import bag_sums, bags_of, running_sum_
from transcoder.sharded import Shard, keep_winners
from transcoder.sparse_code import SparseCode

_BATCH_ROWS = 2048
"""Rows whose reconstructions exist at a time, of all layers and prefixes."""

ByLayer = Callable[[Float[Tensor, "rows d_source"]], Sequence[Float[Tensor, "rows width"]]]
"""Rows of all sources side by side, to each layer's own."""


@torch.no_grad()
def joint_held_out_fvu(
    state: JointState, held_out: HeldOut, *, by_layer: ByLayer, recipe: JointRecipe, shard: Shard
) -> list[float]:
    """By the rule of training, dimensions counted as in the loss. ``state`` is that of this process's features."""
    width = recipe.reach.width
    counts = _dimension_counts(recipe).to(held_out.target.device)
    errors = torch.zeros(recipe.reach.layers, len(recipe.recipes[0].nested.prefixes), dtype=torch.float64)
    for source, target in zip(held_out.source.split(_BATCH_ROWS), held_out.target.split(_BATCH_ROWS), strict=True):
        found = _reconstructions(state, by_layer(source), recipe=recipe, shard=shard)
        wanted = target.unflatten(1, (-1, width)).transpose(0, 1)[:, :, None]
        squares = (found - wanted).square_() * counts[:, None, None]
        errors += squares.sum(dim=3).double().sum(dim=1).cpu()
    total = (held_out.variation.unflatten(0, (-1, width)) * counts).sum(dim=1).cpu()
    return (errors / total[:, None]).mean(dim=0).tolist()


def _reconstructions(
    state: JointState, sources: Sequence[Float[Tensor, "rows width"]], *, recipe: JointRecipe, shard: Shard
) -> Float[Tensor, "layers rows prefixes d_target"]:
    reach = recipe.reach
    prefixes = recipe.recipes[0].nested.prefixes
    codes = _codes(state, sources, recipe=recipe, shard=shard)
    bases = [_base(layer.weights, source, reach.width) for layer, source in zip(state.layers, sources, strict=True)]
    total = torch.stack(bases)[:, :, None].repeat(1, 1, len(prefixes), 1)
    for number, (layer, code) in enumerate(zip(state.layers, codes, strict=True)):
        bags = bags_of(code, shard.prefixes(prefixes))
        sums = shard.sum_(bag_sums(code, bags, layer.weights.W_dec)).unflatten(0, (-1, len(prefixes)))
        reach.add_(total, running_sum_(sums), number)
    return total


def _base(weights: Parameters, source: Float[Tensor, "rows d_source"], width: int) -> Float[Tensor, "rows d_target"]:
    """What all prefixes of a layer share: its bias, and its skip where there is one."""
    bias = weights.b_dec[:width]
    return bias.expand(len(source), -1) if weights.W_skip is None else torch.addmm(bias, source, weights.W_skip)


def _codes(
    state: JointState, sources: Sequence[Float[Tensor, "rows width"]], *, recipe: JointRecipe, shard: Shard
) -> list[SparseCode]:
    """What of every layer fires, over all processes' features."""
    codes: list[SparseCode] = []
    for number, (layer, source) in enumerate(zip(state.layers, sources, strict=True)):
        weights = layer.weights
        rule = recipe.rule_of(number, weights)
        pre = torch.addmm(weights.b_enc, source, weights.W_enc.T)
        found = rule.select_training(pre, batch_rows=len(source))
        codes.append(found if recipe.over_layers else keep_winners(found, rule, batch_rows=len(source), ranks=shard))
    return largest_over_layers(codes, count=recipe.over_all, ranks=shard) if recipe.over_layers else codes


def _dimension_counts(recipe: JointRecipe) -> Float[Tensor, "layers d_target"]:
    """What the squared error of each dimension counts in the loss."""
    scales = [own.nested.dimension_scale for own in recipe.recipes]
    unscaled = torch.ones(recipe.reach.width)
    return torch.stack([unscaled if scale is None else scale.cpu().square() for scale in scales])
