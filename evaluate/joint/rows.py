"""Several layers' held-out rows through one dictionary: FVU, L0 and silent features, layer by layer.

    fvu[t, p] = sum over rows ||y_t - yhat_t,p||^2 / sum over rows ||y_t - mean(y_t)||^2

and the mean over layers, prefix by prefix, with intervals that resample documents, with the weights of every other one.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader
from common.distributed import Ranks
from common.progress import Progress
from evaluate.config import EvaluateSettings
from evaluate.held_out import HeldOut
from evaluate.metrics.bootstrap import DocumentSums, intervals, sums_by_document
from evaluate.metrics.metric import State, l0_by_prefix, numbered
from transcoder.cross_layer import CrossLayerTranscoder

_BATCH_ROWS = 1024
"""Rows whose reconstructions exist at a time, of all layers and prefixes."""


class JointRows:
    """``stacked_reader`` reads the caches of ``readers`` side by side. Several processes deal the rows among them."""

    def __init__(
        self,
        stacked_reader: CacheReader,
        readers: Sequence[CacheReader],
        settings: EvaluateSettings,
        *,
        device: str,
        progress: Progress,
    ) -> None:
        self.held_out = HeldOut(stacked_reader.split("held_out"))
        self._widths = [reader.d_source for reader in readers]
        # Sums are kept around what is nearly the mean, so that none is the difference of two large ones.
        means = [HeldOut(reader.split("held_out")).mean_target for reader in readers]
        self.means: Float[Tensor, "layers d_target"] = torch.stack(means)
        self._settings = settings
        self._device = device
        self._progress = progress

    def measure(self, dictionary: CrossLayerTranscoder) -> dict[str, Any]:
        """The fields of one dictionary."""
        layers = len(dictionary.layers)
        prefixes = len(dictionary.prefixes)
        widths = {
            "rows": (),
            "away": tuple(self.means.shape),
            "squares": (layers,),
            "errors": (layers, prefixes),
            "l0": (layers, prefixes),
        }
        sums = DocumentSums(widths, self._settings.bootstrap, self._settings.seed, self._device)
        state = sums.start()
        firings = torch.zeros(layers, dictionary.dict_size, dtype=torch.int64, device=self._device)
        ranks = Ranks.current()
        total = len(self.held_out.view)
        own = range(ranks.rank * _BATCH_ROWS, total, ranks.world * _BATCH_ROWS)
        self._progress.begin(f"evaluate {dictionary.name}", total=len(own) * _BATCH_ROWS, unit="rows")
        for start in own:
            state = sums.combine(state, self._batch(dictionary, start, min(start + _BATCH_ROWS, total), sums, firings))
            self._progress.advance(_BATCH_ROWS)
        self._progress.end()
        state = ranks.merged(state, sums.combine)
        ranks.sum_(firings)
        return _fields(sums.finish(state), firings, self.held_out.counted)

    def _batch(
        self, dictionary: CrossLayerTranscoder, start: int, end: int, sums: DocumentSums, firings: Tensor
    ) -> State:
        """The sums of some rows; adds what fires to ``firings``."""
        kept = torch.from_numpy(np.flatnonzero(~self.held_out.special[start:end]))
        if not len(kept):
            return sums.start()
        rows = self.held_out.view.rows(slice(start, end), view=dictionary.piece(0).source_view)
        source = rows.source[kept].to(self._device).split(self._widths, dim=1)
        target = rows.target[kept].to(self._device).float().unflatten(1, self.means.shape)
        by_layer = [layer_source.contiguous() for layer_source in source]
        codes = dictionary.codes(by_layer)
        found = dictionary.reconstruct(codes, by_layer).transpose(0, 1)
        centred = target.double() - self.means.to(self._device)
        for layer, code in enumerate(codes):
            fired = code.features[code.values > 0].long()
            firings[layer] += fired.bincount(minlength=dictionary.dict_size)
        documents, document_index = numbered(torch.from_numpy(rows.document)[kept].to(self._device))
        values = {
            "rows": torch.ones_like(document_index),
            "away": centred,
            "squares": centred.square().sum(dim=2),
            "errors": torch.linalg.vector_norm(found - target[:, :, None], dim=3).double().square(),
            "l0": torch.stack([l0_by_prefix(code, dictionary.prefixes) for code in codes], dim=1),
        }
        return sums.of_batch(documents, sums_by_document(values, document_index, documents=len(documents)))


def _fields(sums: State, firings: Tensor, rows: int) -> dict[str, Any]:
    """The estimate is the first of the replicates."""
    sums = {name: array.cpu() for name, array in sums.items()}
    count = sums["rows"]
    variance = sums["squares"] - sums["away"].square().sum(dim=2) / count[:, None]
    fvu = (sums["errors"] / variance[:, :, None]).numpy()
    l0 = (sums["l0"][0] / count[0]).numpy()
    mean = fvu.mean(axis=1)
    return {
        "tokens_used": rows,
        "fvu": float(mean[0, -1]),
        "fvu_per_prefix": mean[0].tolist(),
        "fvu_interval_per_prefix": intervals(mean[1:]),
        "fvu_per_layer_and_prefix": fvu[0].tolist(),
        "l0": float(l0[:, -1].mean()),
        "l0_per_layer_and_prefix": l0.tolist(),
        "dead_per_layer": (firings == 0).double().mean(dim=1).tolist(),
    }
