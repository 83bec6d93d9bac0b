"""Repeated work on a GPU as CUDA graphs: recorded once for each form of the work, then started by one launch.

A step is some hundred small kernels, and on a fast GPU the host takes longer to launch them than they run. A graph is
the same kernels on the same memory, so everything that changes must come in arrays at the same addresses. The first
turns run without a graph, and the first turn of every form: they compile kernels, and create what is created only once.
Work that cannot be recorded always runs without a graph, and a note says why. The results have the same bytes.

Batches differ in rows, because the rows of special tokens are left out: 4,096 rows of contexts of 256 tokens lose 16,
give or take 4. Each number of rows is a form of its own. All forms read their inputs from the same memory.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.progress import Progress

_PLAIN_TURNS = 3
"""Turns without a graph before the first is recorded: as many as PyTorch's own example takes to warm up."""
_MOST_GRAPHS = 256
"""Recorded forms at most. Each takes a few megabytes on the GPU, and numbers of rows that are still new are rare."""
_CAPACITY = 256
"""Rows of an array of inputs are a multiple of this, so that batches of a few rows more or less fit into the same."""
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
        self._inputs: dict[int, Tensor] = {}
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
        if form not in self._recorded and not (self._is_due(form) and self._try_to_record(form, inputs, work)):
            return None
        recorded = self._recorded[form]
        for array, value in zip(recorded.inputs, inputs, strict=True):
            if array is not None and value is not None:
                array.copy_(self._sendable(value), non_blocking=True)
        recorded.replay()
        return {name: result.clone() for name, result in recorded.results.items()}

    def _is_due(self, form: Hashable) -> bool:
        """Whether a form that is not recorded should be, at this turn."""
        seen = self._turns.get(form, 0)
        self._turns[form] = seen + 1
        is_warm = sum(self._turns.values()) > _PLAIN_TURNS
        return seen > 0 and is_warm and len(self._recorded) < _MOST_GRAPHS

    def _input(self, number: int, value: Tensor) -> Tensor:
        """The first rows of an array on the device, as many as ``value`` has. Forms share it."""
        shared = self._inputs.get(number)
        kind = (value.dtype, value.shape[1:])
        if shared is None or (shared.dtype, shared.shape[1:]) != kind or len(shared) < len(value):
            rows = -(-len(value) // _CAPACITY) * _CAPACITY
            # Graphs that were recorded before keep the array that they read.
            shared = torch.zeros(rows, *value.shape[1:], dtype=value.dtype, device=self._device)
            self._inputs[number] = shared
        return shared[: len(value)]

    def _sendable(self, value: Tensor) -> Tensor:
        """From pageable memory a copy would wait for the device."""
        return value.pin_memory() if self._device.type == "cuda" and not value.is_cuda else value

    def _try_to_record(self, form: Hashable, inputs: Inputs, work: Work) -> bool:
        own = [None if value is None else self._input(number, value) for number, value in enumerate(inputs)]
        try:
            results: dict[str, Tensor] = {}
            replay = self._record(lambda: results.update(work(own)))
        except Exception as error:
            self._is_possible = False
            self._forget()
            reason = str(error).partition("\n")[0]
            self._progress.note(
                f"Steps cannot be recorded as CUDA graphs, so their kernels are launched one by one: {reason}"
            )
            return False
        self._recorded[form] = _Recorded(replay, own, results)
        return True

    def _forget(self) -> None:
        """Give back what the graphs hold, for the steps without them: perhaps there was no memory for one more."""
        self._recorded.clear()
        self._inputs.clear()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()

    def _record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what ``work`` launches, and launch nothing; returns what launches it."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        if not self._recorded:
            torch.cuda.empty_cache()  # what plain turns left free is of no use to the graphs' own pool
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
