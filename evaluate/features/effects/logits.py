"""Which tokens' logits a feature raises and lowers: its decoder row through the final norm's gain and the unembedding.

    effect(f, v) = (gain * d_f) . W_U[v]  -  the mean of that over the vocabulary,     d_f = W_dec[f]

d_f loses its mean first where the final norm subtracts means. The norm's scale, which depends on the row, is left out,
and so is everything that later blocks make of the feature: this is the direct effect alone. The unembedding is not in a
cache; it is read from the language model where one is given.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK_BYTES = 1 << 26


@dataclass(frozen=True)
class Unembedding:
    """``W_U`` as the model has it; ``gain`` of the final norm; ``centred`` where that norm subtracts the mean."""

    W_U: Float[Tensor, "vocabulary d_target"]
    gain: Float[Tensor, " d_target"]
    centred: bool
    origin: str


def logit_effects(
    W_dec: Float[Tensor, "features d_target"], unembedding: Unembedding, count: int
) -> dict[str, np.ndarray]:
    """Tokens and effects, strongest first: ``raised_token``, ``raised_logit``, ``lowered_token``, ``lowered_logit``."""
    direction = W_dec.float().cpu()
    if unembedding.centred:
        direction = direction - direction.mean(dim=1, keepdim=True)
    direction = direction * unembedding.gain
    rows = max(1, _BLOCK_BYTES // (4 * len(unembedding.W_U)))
    found = {name: [] for name in ("raised_token", "raised_logit", "lowered_token", "lowered_logit")}
    for some in direction.split(rows):
        effect = some @ unembedding.W_U.T
        effect -= effect.mean(dim=1, keepdim=True)
        for side, sign in (("raised", 1), ("lowered", -1)):
            best = (sign * effect).topk(min(count, effect.shape[1]), dim=1)
            found[f"{side}_token"].append(best.indices.numpy())
            found[f"{side}_logit"].append(sign * best.values.numpy())
    return {name: np.concatenate(parts) for name, parts in found.items()}


@torch.inference_mode()
def gain_of(norm: torch.nn.Module, width: int) -> tuple[Float[Tensor, " width"], bool]:
    """A norm's gain, and whether it subtracts the mean, found from what it computes. Raises ValueError for no norm.

    With z = x / rms(x), or the same of x less its mean, a norm is gain * z + bias, and bias is what it makes of 0.
    """
    parameter = next(norm.parameters())
    draw = torch.randn(2, width, generator=torch.Generator().manual_seed(0)).to(parameter)
    bias = norm(torch.zeros_like(draw)).float()
    made = norm(draw).float() - bias
    for centred in (False, True):
        moved = draw.float() - (draw.float().mean(dim=1, keepdim=True) if centred else 0)
        gain = made / (moved / moved.square().mean(dim=1, keepdim=True).sqrt())
        if torch.allclose(gain[0], gain[1], rtol=0.05, atol=1e-2):
            return gain.mean(dim=0).cpu(), centred
    raise ValueError("the module is neither a layer norm nor a root-mean-square norm")
