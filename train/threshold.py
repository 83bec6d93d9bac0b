"""Thresholds from training rows: those that a rule such as batchtopk needs for evaluation, and the first values of
thresholds that are trained."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader, View
from train.arrays.parameters import Parameters
from train.arrays.units import Units
from transcoder.rules.rule import Rule

_ROWS = 32_768
"""Training rows that a rule is calibrated on."""
_BATCH_ROWS = 1024
"""Rows whose pre-activations exist at a time."""
_FIRST_ROWS = 8192
"""Training rows that the first thresholds come from: they only need the right order of magnitude."""
_BLOCK = 1024
"""Features whose pre-activations on those rows exist at a time."""
# Times top_k: from there, training brings L0 down to top_k (see ``with_first_thresholds``).
_FIRST_L0 = 4


def calibrated_rule(weights: Parameters, rule: Rule, reader: CacheReader, *, view: View, device: str) -> Rule:
    """The rule for evaluation, from the first rows of the training split, without special tokens.

    ``weights`` are in the units of the cache. A rule that needs no calibration is returned unchanged, and nothing is
    computed.
    """
    source = _first_rows(reader, count=_ROWS, view=view)

    def batches() -> Iterator[Float[Tensor, "rows dict_size"]]:
        """Pre-activations, computed when they are needed."""
        for rows in source.split(_BATCH_ROWS):
            yield torch.addmm(weights.b_enc, rows.to(device, weights.b_enc.dtype), weights.W_enc.T)

    return rule.calibrated(batches(), rows=len(source))


def with_first_thresholds(
    weights: Parameters, reader: CacheReader, units: Units, *, view: View, top_k: int, device: str
) -> Parameters:
    """Weights in training units, with thresholds at which every feature fires on the same share of rows.

    With that share, ``_FIRST_L0`` times ``top_k`` features fire a row. With a threshold of 0, half of all would fire,
    and a sparse step would be slow.
    """
    source = units.source(_first_rows(reader, count=_FIRST_ROWS, view=view)).to(device)
    share = min(0.5, _FIRST_L0 * top_k / len(weights.b_enc))
    count = max(1, round(share * len(source)))
    thresholds = [
        torch.addmm(bias, source, encoder.T).topk(min(count, len(source)), dim=0).values[-1]
        for encoder, bias in zip(weights.W_enc.split(_BLOCK), weights.b_enc.split(_BLOCK), strict=True)
    ]
    return replace(weights, threshold=torch.cat(thresholds).clamp_(min=0))


def _first_rows(reader: CacheReader, *, count: int, view: View) -> Float[Tensor, "rows d_source"]:
    """The source of the first rows of the training split, without special tokens."""
    split = reader.split("train")
    taken = split.rows(slice(0, min(count, len(split))), view=view)
    return taken.source[torch.from_numpy(split.is_ordinary(taken.tokens))]
