"""Top-k as thresholds, for tools that know nothing else: each feature's own, at which it fires as often as before.

    n_f     rows, out of R training rows, on which feature f fires under top-k
    theta_f halfway between the n_f-th and the (n_f + 1)-th largest of its pre-activations over the R rows, at least 0

On those rows f then fires n_f times again, though on other rows than under top-k; only where fewer than n_f of its
pre-activations are positive, or several are equal, can it be fewer. Matching each feature's rate lost less than one
threshold for all (FVU .0647 against .0667 on a run of ours whose top-k had .0604).
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cache.reader import CacheReader
from common.errors import UsageError
from common.progress import Progress
from transcoder.rules.threshold import JumpReLU
from transcoder.sparse_code import SparseCode
from transcoder.transcoder import Transcoder

_BLOCK_NUMBERS = 1 << 26
"""Pre-activations at a time: 256 MB of float32."""


def matched_thresholds(
    transcoder: Transcoder,
    source: Float[Tensor, "rows d_source"],
    *,
    progress: Progress,
    code: SparseCode | None = None,
) -> JumpReLU:
    """The thresholds at which every feature fires as often on these rows as under the transcoder's own rule.

    ``code`` is what fires on them where that is not a matter of this transcoder's rule alone.
    """
    code = transcoder.sparse_code(source) if code is None else code
    counts = code.features[code.values > 0].long().bincount(minlength=transcoder.dict_size)
    threshold = torch.zeros(transcoder.dict_size, device=source.device)
    # Rare features first: a block has to find no more of each column's largest than its most frequent feature fires.
    order = counts.argsort(stable=True)
    progress.begin("match thresholds", total=transcoder.dict_size, unit="features")
    for features in order.split(max(1, _BLOCK_NUMBERS // max(1, len(source)))):
        W_enc = transcoder.W_enc.detach()[features]
        pre = torch.addmm(transcoder.b_enc.detach()[features, None], W_enc, source.to(W_enc.dtype).T)
        threshold[features] = thresholds_for_counts(pre, counts[features])
        progress.advance(len(features))
    progress.end()
    return JumpReLU(threshold)


def thresholds_for_counts(
    pre: Float[Tensor, "features rows"], counts: Int[Tensor, " features"]
) -> Float[Tensor, " features"]:
    """For each feature the threshold, at least 0, that ``counts`` of its pre-activations exceed."""
    rows = pre.shape[1]
    largest = pre.topk(min(rows, int(counts.max()) + 1), dim=1).values
    last = largest.shape[1] - 1
    kept = largest.gather(1, (counts - 1).clamp(0, last)[:, None])[:, 0]
    next_below = largest.gather(1, counts.clamp(0, last)[:, None])[:, 0]
    middle = next_below + (kept - next_below) / 2
    middle = torch.where(middle >= kept, next_below, middle)  # two neighbouring floats have none between them
    threshold = torch.where(counts == 0, largest[:, 0], middle)
    # A feature that fires on every row has no next value: nothing below its least must stay silent.
    return torch.where(counts == rows, 0.0, threshold).clamp_min(0)


def calibration_source(
    reader: CacheReader, transcoder: Transcoder, *, rows: int, device: str
) -> Float[Tensor, "rows d_source"]:
    """Sources of training rows from all over the cache, without special tokens. Raises UsageError where there are
    none."""
    train = reader.split("train")
    index = np.unique(np.linspace(0, max(0, len(train) - 1), num=min(rows, len(train))).astype(np.int64))
    kept = index[train.is_ordinary(train.tokens[index])] if len(train) else index[:0]
    if not len(kept):
        raise UsageError("The cache has no training rows to match thresholds on.", where=reader.path)
    source, _ = train.activations(kept, view=transcoder.source_view)
    return source.to(device).float()
