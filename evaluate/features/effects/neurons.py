"""Which neurons of the layer's MLP write as a feature does, where the cache stores it (``cache.target: recompute``).

    alignment(f, n) = cosine of W_dec[f] and gain * W_out[:, n]

W_out is the MLP's last matrix; gain is that of a norm behind the MLP, or 1. The largest by size are listed, with their
sign: a neuron that is negative enough writes against itself.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cache.storage.recompute import Mlp

# Of cosines at a time: every feature has one with every neuron.
_BLOCK_BYTES = 1 << 26


def aligned_neurons(W_dec: Float[Tensor, "features d_target"], mlp: Mlp, count: int) -> dict[str, np.ndarray]:
    """``neuron_index`` and ``neuron_cosine`` of every feature, the largest size first."""
    written = mlp.down.float().T.to(W_dec.device)
    if mlp.post_gain is not None:
        written = written * mlp.post_gain.float().to(W_dec.device)
    neurons = torch.nn.functional.normalize(written, dim=1)
    features = torch.nn.functional.normalize(W_dec.float(), dim=1)
    index: list[np.ndarray] = []
    cosine: list[np.ndarray] = []
    for block in features.split(max(1, _BLOCK_BYTES // (4 * len(neurons)))):
        product = block @ neurons.T
        best = product.abs().topk(min(count, len(neurons)), dim=1).indices
        index.append(best.cpu().numpy())
        cosine.append(product.gather(1, best).cpu().numpy())
    return {"neuron_index": np.concatenate(index), "neuron_cosine": np.concatenate(cosine)}
