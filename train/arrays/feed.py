"""Batches on the device of training, each sent while the step before it runs.

On CUDA the next batch is copied from pinned memory on a separate stream. An event makes sure that it has arrived before
it is used, and ``record_stream`` keeps its memory until the step that reads it is done. On a CPU nothing is copied.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from cache.loader import Batch


@dataclass(frozen=True)
class _Sent:
    """A batch whose arrays are on the device once the event ``arrived`` is over; None if they are there already."""

    batch: Batch
    arrived: torch.Event | None


class Feed:
    """An iterator over the same batches in the same order, with source and target on ``device``."""

    def __init__(self, batches: Iterable[Batch], device: torch.device) -> None:
        self._batches = batches
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __iter__(self) -> Iterator[Batch]:
        sent: _Sent | None = None
        for batch in self._batches:
            following = self._send(batch)
            if sent:
                yield self._receive(sent)
            sent = following
        if sent:
            yield self._receive(sent)

    def _send(self, batch: Batch) -> _Sent:
        """Start the copy to the device, while that computes something else."""
        with torch.cuda.stream(self._stream):
            source, target = (array.to(self._device, non_blocking=True) for array in (batch.source, batch.target))
        arrived = self._stream.record_event() if self._stream else None
        return _Sent(replace(batch, source=source, target=target), arrived)

    def _receive(self, sent: _Sent) -> Batch:
        """The batch, for use by what is computed from now on."""
        if sent.arrived:
            using = torch.cuda.current_stream(self._device)
            using.wait_event(sent.arrived)
            for array in (sent.batch.source, sent.batch.target):
                array.record_stream(using)
        return sent.batch
