"""A plain trainer of nested top-k transcoders, as one writes it in an afternoon: what ours is measured beside.

Random directions at first, a dense code, a matrix product a prefix, PyTorch's autograd and Adam, an auxiliary loss on
dead features, decoder rows of norm 1 after every step. Source and target are scaled by one number each, and the loss is
the mean over prefixes of the pooled FVU. Rows, batches, warm-up and linear decay of the rate are those of ours.
"""

import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cache.loader import Loader
from cache.reader import CacheReader
from train.arrays.units import Units, units_of
from transcoder.formats.native import save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

_AUX_ALPHA = 1 / 32


class Plain(nn.Module):
    """The four arrays, feature-major, in units in which source and target have variance 1 a dimension on average."""

    def __init__(self, units: Units, *, d_source: int, dict_size: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        encoder = (2 * torch.rand(dict_size, d_source, generator=generator) - 1) / math.sqrt(d_source)
        decoder = normalize(torch.randn(dict_size, units.width, generator=generator), dim=1)
        self.W_enc = nn.Parameter(encoder)
        self.b_enc = nn.Parameter(-encoder @ units.source(units.source_mean[None])[0])
        self.W_dec = nn.Parameter(decoder)
        self.b_dec = nn.Parameter(units.target(units.target_mean[None])[0])

    def loss(
        self, source: Tensor, target: Tensor, *, prefixes: Sequence[int], top_k: int, dead: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mean over prefixes of SSE / (rows x width), with the auxiliary loss; and which features fired.

        The target's variance a row is its width in these units. ``dead`` are the indices of dead features.
        """
        pre = source @ self.W_enc.T + self.b_enc
        values, features = pre.topk(top_k, dim=1)
        code = torch.zeros_like(pre).scatter(1, features, values.relu())
        outputs = [code[:, :prefix] @ self.W_dec[:prefix] + self.b_dec for prefix in prefixes]
        errors = torch.stack([(output - target).square().sum() for output in outputs])
        loss = errors.mean() / target.numel()
        if len(dead):
            loss = loss + self._auxiliary(pre[:, dead], (target - outputs[-1]).detach(), dead)
        return loss, (code.detach() > 0).any(dim=0)

    def _auxiliary(self, pre: Tensor, missing: Tensor, dead: Tensor) -> Tensor:
        """How badly the dead features that are largest in each row account for what the others leave (Gao et al.)."""
        count = missing.shape[1] // 2
        values, columns = pre.topk(min(count, len(dead)), dim=1)
        estimate = torch.zeros_like(pre).scatter(1, columns, values.relu()) @ self.W_dec[dead]
        share = (estimate - missing).square().sum() / (missing - missing.mean(dim=0)).square().sum()
        return _AUX_ALPHA * min(1.0, len(dead) / count) * share


def train_plain(
    reader: CacheReader,
    *,
    prefixes: Sequence[int],
    top_k: int,
    steps: int,
    batch_rows: int,
    lr: float,
    dead_after_tokens: int,
    warmup_steps: int = 100,
    seed: int = 0,
) -> Transcoder:
    """The trained transcoder in the cache's units, by the batches that ours would get with this seed of the order."""
    units = units_of(reader, "mlp_in", "whole")
    plain = Plain(units, d_source=reader.d_source, dict_size=prefixes[-1], seed=seed)
    adam = torch.optim.Adam(plain.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: min((step + 1) / warmup_steps, (steps - step) / (steps - warmup_steps))
    )
    since_fired = torch.zeros(prefixes[-1], dtype=torch.int64)
    with Loader(reader, batch_rows=batch_rows, seed=seed) as batches:
        for batch in islice(batches, steps):
            dead = (since_fired >= dead_after_tokens).nonzero()[:, 0]
            source, target = units.source(batch.source), units.target(batch.target)
            loss, fired = plain.loss(source, target, prefixes=prefixes, top_k=top_k, dead=dead)
            adam.zero_grad()
            loss.backward()
            adam.step()
            schedule.step()
            with torch.no_grad():
                plain.W_dec.copy_(normalize(plain.W_dec, dim=1))
                since_fired.add_(len(source)).masked_fill_(fired, 0)
    return _in_units_of_the_cache(plain, units, TopK(top_k), tuple(prefixes))


def _in_units_of_the_cache(plain: Plain, units: Units, rule: TopK, prefixes: tuple[int, ...]) -> Transcoder:
    assert isinstance(units.source_scale, float)
    arrays = {name: array.detach() for name, array in plain.named_parameters()}
    arrays["W_enc"] = arrays["W_enc"] * (units.source_scale / units.target_scale)
    for name in ("b_enc", "b_dec"):
        arrays[name] = arrays[name] / units.target_scale
    return Transcoder.from_arrays(arrays, rule=rule, prefixes=prefixes)


def save_plain(transcoder: Transcoder, folder: Path, reader: CacheReader) -> None:
    """Saved as ours are, so that the same evaluation reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"cache_fingerprint": reader.fingerprint, "trainer": "plain"}
    save_transcoder(transcoder, folder, config=config)
