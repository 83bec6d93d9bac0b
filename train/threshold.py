"""Calibration: what a rule must learn from training rows before it can be evaluated, such as batchtopk's threshold."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader, View
from train.arrays.parameters import Parameters
from transcoder.rules.rule import Rule

_ROWS = 32_768
"""Training rows that a rule is calibrated on."""
_BATCH_ROWS = 1024
"""Rows whose pre-activations exist at a time."""


def calibrated_rule(weights: Parameters, rule: Rule, reader: CacheReader, *, view: View, device: str) -> Rule:
    """The rule to evaluate by, from the first rows of the training split, special tokens left out.

    ``weights`` are in the units of the cache. A rule that needs no calibration comes back as it is, and nothing is
    computed.
    """
    split = reader.split("train")
    taken = split.rows(slice(0, min(_ROWS, len(split))), view=view)
    source = taken.source[torch.from_numpy(split.is_ordinary(taken.tokens))]

    def batches() -> Iterator[Float[Tensor, "rows dict_size"]]:
        """Pre-activations, made as they are asked for."""
        for rows in source.split(_BATCH_ROWS):
            yield torch.addmm(weights.b_enc, rows.to(device, weights.b_enc.dtype), weights.W_enc.T)

    return rule.calibrated(batches(), rows=len(source))
