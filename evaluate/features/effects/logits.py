"""Which tokens' logits a feature raises and lowers: its decoder row through the final norm's gain and the unembedding.

    effect(f, v) = (gain * d_f) . W_U[v]  -  the mean of that over the vocabulary,     d_f = W_dec[f]

d_f loses its mean first where the final norm subtracts means. The norm's scale, which depends on the row, is left out,
and so is everything that later blocks make of the feature: this is the direct effect alone. A soft cap on the logits
(Gemma-2) is monotone: it leaves the order of the tokens, and the effects are those before it.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cache.storage.unembedding import Unembedding

HISTOGRAM_BINS = 40
"""Bars that a page has room for."""
_BLOCK_BYTES = 1 << 26
"""Of the effects that are in memory at a time."""


def logit_effects(
    W_dec: Float[Tensor, "features d_target"], unembedding: Unembedding, count: int
) -> dict[str, np.ndarray]:
    """Tokens and effects, strongest first: ``raised_token``, ``raised_logit``, ``lowered_token``, ``lowered_logit``.

    And ``logit_histogram``: the vocabulary in equal bins from the lowest effect to the highest.
    """
    direction = W_dec.float().cpu()
    if unembedding.centred:
        direction = direction - direction.mean(dim=1, keepdim=True)
    direction = direction * unembedding.gain
    rows = max(1, _BLOCK_BYTES // (4 * len(unembedding.W_U)))
    found: list[dict[str, np.ndarray]] = []
    for block in direction.split(rows):
        effect = block @ unembedding.W_U.T
        effect -= effect.mean(dim=1, keepdim=True)
        found.append(_strongest(effect, count) | {"logit_histogram": _histogram(effect)})
    return {name: np.concatenate([block_effects[name] for block_effects in found]) for name in found[0]}


def _strongest(effect: Float[Tensor, "features vocabulary"], count: int) -> dict[str, np.ndarray]:
    strongest: dict[str, np.ndarray] = {}
    for direction, sign in (("raised", 1), ("lowered", -1)):
        best = (sign * effect).topk(min(count, effect.shape[1]), dim=1)
        strongest[f"{direction}_token"] = best.indices.numpy()
        strongest[f"{direction}_logit"] = sign * best.values.numpy()
    return strongest


def _histogram(effect: Float[Tensor, "features vocabulary"]) -> Int[np.ndarray, "features bins"]:
    """How many tokens lie in each bin; an effect between two bins lies in the upper one."""
    lowest, highest = effect.aminmax(dim=1, keepdim=True)
    width = (highest - lowest).clamp_min(torch.finfo(effect.dtype).tiny) / HISTOGRAM_BINS
    bin_number = ((effect - lowest) / width).int().clamp_max_(HISTOGRAM_BINS - 1)
    bin_number += HISTOGRAM_BINS * torch.arange(len(effect), dtype=torch.int32)[:, None]
    counts = bin_number.flatten().bincount(minlength=HISTOGRAM_BINS * len(effect))
    return counts.view(len(effect), HISTOGRAM_BINS).numpy()
