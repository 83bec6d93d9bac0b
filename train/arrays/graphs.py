"""Repeated work on a GPU as CUDA graphs: recorded once for each form of the work, then started by one launch.

A step is some hundred small kernels, and on a fast GPU the host takes longer to launch them than they run. A graph is
the same kernels on the same memory, so everything that changes must come in arrays at the same addresses. The first
turns of a form run without a graph: they compile kernels, and create what is created only once. Work that cannot be
recorded always runs without a graph, and a note says why. The results have the same bytes. Not yet run on a GPU.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.progress import Progress

_PLAIN_TURNS = 3
"""Turns without a graph before one is recorded: as many as PyTorch's own example takes to warm up."""
Inputs = Sequence[Any]
"""Tensors; None for one that a form does not have."""
Work = Callable[[Inputs], dict[str, Tensor]]


@dataclass(frozen=True)
class _Recorded:
    """A graph, the arrays that it reads its inputs from, and those that it leaves its results in."""

    replay: Callable[[], None]
    inputs: Inputs
    results: dict[str, Tensor]


class Graphs:
    """The recorded forms of one kind of work on one device. All share a pool of memory: one is played at a time."""

    def __init__(self, device: torch.device | str, progress: Progress) -> None:
        self._device = torch.device(device)
        self._progress = progress
        self._recorded: dict[Hashable, _Recorded] = {}
        self._turns: dict[Hashable, int] = {}
        self._is_possible = True
        if self._device.type == "cuda":
            # Memory of a pool can be used again only on the stream that it was taken on.
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(self._device)

    @property
    def recorded(self) -> list[Hashable]:
        """The forms that are played."""
        return list(self._recorded)

    def play(self, form: Hashable, inputs: Inputs, work: Work) -> dict[str, Tensor] | None:
        """The results of ``work`` on ``inputs``; None if the caller must run it without a graph.

        Inputs may be on the host. Results are copies. For one form, ``work`` must always run the same kernels on the
        same arrays, except its inputs.
        """
        if not self._is_possible:
            return None
        if form not in self._recorded:
            self._turns[form] = self._turns.get(form, 0) + 1
            if self._turns[form] <= _PLAIN_TURNS or not self._try_to_record(form, inputs, work):
                return None
        recorded = self._recorded[form]
        for array, value in zip(recorded.inputs, inputs, strict=True):
            if array is not None and value is not None:
                array.copy_(self._sendable(value), non_blocking=True)
        recorded.replay()
        return {name: result.clone() for name, result in recorded.results.items()}

    def _sendable(self, value: Tensor) -> Tensor:
        """From pageable memory a copy would wait for the device."""
        return value.pin_memory() if self._device.type == "cuda" and not value.is_cuda else value

    def _try_to_record(self, form: Hashable, inputs: Inputs, work: Work) -> bool:
        own = [None if value is None else torch.zeros_like(value, device=self._device) for value in inputs]
        try:
            results: dict[str, Tensor] = {}
            replay = self._record(lambda: results.update(work(own)))
        except Exception as error:
            self._is_possible = False
            reason = str(error).partition("\n")[0]
            self._progress.note(
                f"Steps cannot be recorded as CUDA graphs, so their kernels are launched one by one: {reason}"
            )
            return False
        self._recorded[form] = _Recorded(replay, own, results)
        return True

    def _record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` launches, and launch nothing; returns what launches it."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # what plain turns left free is of no use to the graph's own pool
        try:
            with torch.cuda.stream(self._stream):
                # The other threads, which pin memory for the batches to come, may go on meanwhile.
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    work()
                finally:
                    graph.capture_end()
        except Exception:
            # A capture that failed leaves the allocator in it: batches would never be freed again.
            with suppress(Exception):
                end = torch._C._cuda_endAllocateToPool  # pyright: ignore[reportPrivateUsage]
                end(self._device.index or 0, self._pool)
            raise
        return graph.replay
