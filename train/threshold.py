"""The threshold that a batchtopk transcoder is evaluated by: the one number at which training rows have ``top_k``
active features on average. Exact over the rows it is taken from."""

import torch
from torch import Tensor

from cache.reader import CacheReader, View
from transcoder.weights import Weights

_ROWS, _BATCH_ROWS = 32_768, 1024


def calibrated_threshold(weights: Weights, reader: CacheReader, *, top_k: int, view: View, device: str) -> float:
    """From the first rows of the training split, special tokens left out; 0 where fewer than ``top_k`` fire at all."""
    split = reader.split("train")
    taken = split.rows(slice(0, min(_ROWS, len(split))), view=view)
    source = taken.source[torch.from_numpy(split.is_ordinary(taken.tokens))]
    batches = [weights.b_enc.new_tensor(()).new_empty(0)]
    wanted = len(source) * top_k
    for rows in source.split(_BATCH_ROWS):
        pre = torch.addmm(weights.b_enc, rows.to(device, weights.b_enc.dtype), weights.W_enc)
        batches = [_largest(torch.cat([*batches, pre.relu_().flatten()]), wanted)]
    return float(batches[0].min()) if batches[0].numel() >= max(1, wanted) else 0.0


def _largest(values: Tensor, count: int) -> Tensor:
    """The ``count`` largest positive ones, in any order."""
    positive = values[values > 0]
    return positive if positive.numel() <= count else positive.topk(count, sorted=False).values
