"""One batch through the model and on its way to the caches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from common.device import to_device
from common.errors import CapacityError
from common.progress import Progress
from harvest.config import HarvestSettings, Site
from harvest.model.forward import Captured, Key, compile_blocks, run_modules
from harvest.model.language_model import LanguageModel
from harvest.text.tokens import ContextBatch


@dataclass(frozen=True)
class BatchRows:
    """A batch's kept rows; on a GPU they are still on their way to pinned memory until ``arrive``."""

    batch: ContextBatch
    tensors: dict[Key, Float[Tensor, "rows d"]]
    copied: Sequence[torch.cuda.Event] = ()

    def arrive(self) -> None:
        """Wait until the rows are in the host's memory."""
        for event in self.copied:
            event.synchronize()

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
    """Runs batches; a batch that does not fit the device's memory goes through in halves."""

    def __init__(self, model: LanguageModel, settings: HarvestSettings, keys: Sequence[Key]) -> None:
        self._model = model
        self._keys = keys
        self._within_documents = settings.attention == "document"
        self._contexts: int | None = None
        if settings.compile:
            compile_blocks(model, keys)

    def run(self, batch: ContextBatch, progress: Progress) -> BatchRows:
        """The kept rows of every site. Raises CapacityError when a single context does not fit."""
        while True:
            size = min(self._contexts or len(batch.tokens), len(batch.tokens))
            try:
                pieces = [self._forward(batch, start, size) for start in range(0, len(batch.tokens), size)]
                break
            except torch.OutOfMemoryError:
                self._contexts = size // 2
            if not self._contexts:
                raise CapacityError(
                    f"One context of {batch.tokens.shape[1]} tokens does not fit on {self._model.device}.",
                    remedy="Lower harvest.context, choose harvest.dtype bfloat16, or free the device.",
                )
            torch.cuda.empty_cache()
            progress.note(f"out of memory with {size} contexts at once: going on with {self._contexts}")
        return _to_host(batch, {key: _joined([piece[key] for piece in pieces]) for key in self._keys})

    def _forward(self, batch: ContextBatch, start: int, size: int) -> dict[Key, Float[Tensor, "rows d"]]:
        contexts = slice(start, start + size)
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
        # By number: which rows a mask keeps a GPU would have to be asked for.
        wanted = torch.from_numpy(np.flatnonzero(kept))
        there = {device: to_device(wanted, device) for device in {tensor.device for tensor in rows.values()}}
        return {key: tensor.index_select(0, there[tensor.device]) for key, tensor in rows.items()}


def _joined(pieces: list[Float[Tensor, "_ d"]]) -> Float[Tensor, "rows d"]:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _to_host(batch: ContextBatch, tensors: dict[Key, Float[Tensor, "rows d"]]) -> BatchRows:
    """Start copying to pinned memory, so that the model goes on while the rows travel and are written."""
    if all(tensor.device.type == "cpu" for tensor in tensors.values()):
        return BatchRows(batch, tensors)
    # An asynchronous copy needs pinned memory on the host.
    pinned = {key: torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for key, t in tensors.items()}
    for key, tensor in tensors.items():
        pinned[key].copy_(tensor, non_blocking=True)
    return BatchRows(batch, pinned, copied=[_recorded(device) for device in {t.device for t in tensors.values()}])


def _recorded(device: torch.device) -> torch.cuda.Event:
    """An event behind everything that the device has been asked for so far."""
    with torch.cuda.device(device):
        event = torch.cuda.Event()
        event.record()
    return event
