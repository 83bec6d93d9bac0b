"""Work on many rows at once that may need more memory than there is: what does not fit is done again in halves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from common.errors import CapacityError
from common.progress import Progress

Result = TypeVar("Result")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU, numpy or torch on a CPU ran out of memory; the last one has no error type of its own."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


@dataclass
class Halving:
    """``size`` is how many items are done at once (None: all of them). A size that was halved stays for later work.

    ``unit`` names the items for ``progress``; ``refusal`` is raised when a single item does not fit.
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
            # After the except block: until it ends, the error keeps everything that the work had allocated.
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
