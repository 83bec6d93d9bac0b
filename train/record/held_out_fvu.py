"""Held-out FVU during a run: the best checkpoint is the one where it is lowest.

    FVU_p = sum ||c (target - y_p)||^2 / sum ||c (target - mean)||^2      both over the held-out rows, their own mean

with c the weights of dimensions in the loss (train/objective.py), so that it can be compared with the FVU of batches;
over the first ``held_out_rows`` held-out rows, without special tokens, with the selection rule of training. The
evaluation over all rows, with the rule for evaluation, is another stage.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader, View
from train.arrays.parameters import Parameters
from train.arrays.units import Units
from train.objective import NestedLoss
from transcoder.decode import decode_prefixes
from transcoder.sharded import UNSHARDED, Shard, keep_winners

_BATCH_ROWS = 2048
"""Rows whose reconstructions by all prefixes exist at a time: as many as in a default batch."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows in memory, in training units; ``variation`` is each dimension's sum of squares about its mean."""

    source: Float[Tensor, "rows d_source"]
    target: Float[Tensor, "rows d_target"]
    variation: Float[Tensor, " d_target"]

    @staticmethod
    def read(reader: CacheReader, units: Units, *, rows: int, view: View, device: str) -> "HeldOut | None":
        """The first ``rows`` held-out rows; None where there are none."""
        split = reader.split("held_out")
        taken = split.rows(slice(0, min(rows, len(split))), view=view)
        ordinary = torch.from_numpy(split.is_ordinary(taken.tokens))
        if not bool(ordinary.any()):
            return None
        target = units.target(taken.target[ordinary].to(device))
        centred = target.double() - target.double().mean(dim=0)
        return HeldOut(units.source(taken.source[ordinary].to(device)), target, centred.square().sum(dim=0))


def held_out_fvu(
    weights: Parameters, held_out: HeldOut, *, nested: NestedLoss, shard: Shard = UNSHARDED
) -> list[float]:
    """FVU of every prefix; ``weights`` are those of this process's features."""
    errors = torch.zeros(len(nested.prefixes), dtype=torch.float64, device=held_out.source.device)
    batches = zip(held_out.source.split(_BATCH_ROWS), held_out.target.split(_BATCH_ROWS), strict=True)
    for source, target in batches:
        errors += _squared_errors(weights, source, target=target, nested=nested, shard=shard)
    scale = nested.dimension_scale
    variation = held_out.variation if scale is None else held_out.variation * scale.double().square()
    return (errors / variation.sum()).tolist()


def _squared_errors(
    weights: Parameters,
    source: Float[Tensor, "rows d_source"],
    *,
    target: Float[Tensor, "rows d_target"],
    nested: NestedLoss,
    shard: Shard,
) -> Float[Tensor, " prefixes"]:
    pre = torch.addmm(weights.b_enc, source, weights.W_enc.T)
    rule = nested.rule_of(weights)
    candidates = rule.select_training(pre, batch_rows=len(source))
    code = keep_winners(candidates, rule, batch_rows=len(source), ranks=shard)
    base = weights.b_dec if weights.W_skip is None else torch.addmm(weights.b_dec, source, weights.W_skip)
    decoded = decode_prefixes(code, weights.W_dec, base, prefixes=nested.prefixes, shard=shard)
    errors = decoded - target[:, None]
    if nested.dimension_scale is not None:
        errors *= nested.dimension_scale
    return errors.square().sum(dim=2).double().sum(dim=0)
