"""One batch through the model: its rows stay on the device until the writing thread takes them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from common.device import Mark, mark, to_device
from common.errors import CapacityError
from common.halving import Halving
from common.progress import Progress
from harvest.config import HarvestSettings, Site
from harvest.model.forward import Captured, Key, compile_blocks, run_modules
from harvest.model.language_model import LanguageModel
from harvest.text.tokens import ContextBatch


@dataclass(frozen=True)
class BatchRows:
    """The kept rows of a batch, on the device where the model computes them; a GPU may not have finished them yet."""

    batch: ContextBatch
    tensors: dict[Key, Float[Tensor, "rows d"]]
    computed: dict[torch.device, Mark] = field(default_factory=dict)
    """For each device of the rows the point at which it has finished them."""

    def site(self, layer: int, site: Site) -> Float[Tensor, "rows d"]:
        """The rows of one site."""
        return self.tensors[layer, site]

    @property
    def columns(self) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
        """Token, document and position in the context of every row."""
        kept = self.batch.kept
        positions = np.broadcast_to(np.arange(kept.shape[1], dtype=np.int32), kept.shape)
        return self.batch.tokens[kept].astype(np.int32), self.batch.documents[kept], positions[kept]


class BatchForward:
    """Runs batches; a batch that does not fit in the device's memory is run in halves."""

    def __init__(self, model: LanguageModel, settings: HarvestSettings, keys: Sequence[Key]) -> None:
        self._model = model
        self._keys = keys
        self._within_documents = settings.attention == "document"
        self._contexts: int | None = None
        if settings.compile:
            compile_blocks(model, keys)

    def run(self, batch: ContextBatch, progress: Progress) -> BatchRows:
        """The kept rows of every site. Raises CapacityError when a single context does not fit."""
        refusal = CapacityError(
            f"One context of {batch.tokens.shape[1]} tokens does not fit on {self._model.device}.",
            remedy="Lower harvest.context, choose harvest.dtype bfloat16, or free the device.",
        )
        halving = Halving(progress, "contexts", refusal, size=self._contexts)
        pieces = list(halving.run(partial(self._forward, batch), 0, len(batch.tokens)))
        self._contexts = halving.size
        tensors = {key: _joined([piece[key] for piece in pieces]) for key in self._keys}
        devices = {rows.device for rows in tensors.values()}
        return BatchRows(batch, tensors, {device: mark(device) for device in devices})

    def _forward(self, batch: ContextBatch, start: int, stop: int) -> dict[Key, Float[Tensor, "rows d"]]:
        contexts = slice(start, stop)
        device = self._model.device
        tokens = to_device(torch.from_numpy(batch.tokens[contexts]), device)
        positions = None
        if self._within_documents:
            positions = to_device(torch.from_numpy(batch.document_positions[contexts]), device)
        captured: Captured = run_modules(self._model, tokens, keys=self._keys, positions=positions)

        kept = batch.kept[contexts]
        rows = {key: tensor.flatten(0, 1) for key, tensor in captured.items()}
        if kept.all():
            return rows
        # Rows by their numbers: with a mask the host would have to wait for the GPU to count them.
        wanted = torch.from_numpy(np.flatnonzero(kept))
        there = {device: to_device(wanted, device) for device in {tensor.device for tensor in rows.values()}}
        return {key: tensor.index_select(0, there[tensor.device]) for key, tensor in rows.items()}


def _joined(pieces: list[Float[Tensor, "_ d"]]) -> Float[Tensor, "rows d"]:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
