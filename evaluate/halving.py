"""Work on many rows at a time that may not fit the memory: what does not fit is done again in halves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from common.errors import CapacityError
from common.progress import Progress

Result = TypeVar("Result")


def is_out_of_memory(error: Exception) -> bool:
    """Whether it is a GPU's, numpy's, or torch's own on a CPU, which has no type."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@dataclass
class Halving:
    """``size`` is how many items go at a time (None: all of them); once halved it stays so for later work.

    ``unit`` names the items for ``progress``; ``refusal`` is raised where a single one does not fit.
    """

    progress: Progress
    unit: str
    refusal: CapacityError
    size: int | None = None

    def run(self, work: Callable[[int, int], Result], start: int, end: int) -> Iterator[Result]:
        """``work(first, stop)`` for pieces of ``start`` to ``end``, in order. ``work`` must change nothing."""
        while start < end:
            stop = min(start + (self.size or end - start), end)
            try:
                result = work(start, stop)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                result = None
            # Behind the except block: until it ends, the error keeps everything that the work had allocated.
            if result is None:
                self._halve(stop - start)
                continue
            yield result
            start = stop

    def _halve(self, size: int) -> None:
        if size == 1:
            raise self.refusal
        self.size = (size + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.progress.note(f"Out of memory: going on with {self.size} {self.unit} at a time.")
