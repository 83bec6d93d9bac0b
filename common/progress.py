"""How a stage reports its progress, and measures where its time went.

The command line shows progress; a library caller may pass ``Silent``.
"""

import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Receives the progress of one task after another; ``metrics`` are the latest values by name (loss, fvu, ...)."""

    def begin(self, task: str, *, total: int, unit: str, done: int = 0) -> None:
        """A task of ``total`` units begins; ``done`` of them were done earlier."""

    def advance(self, amount: int, **metrics: float) -> None:
        """``amount`` more units are done."""

    def note(self, text: str) -> None:
        """Show a sentence to the user."""

    def end(self) -> None:
        """The task ends, finished or not."""


class Silent:
    """Shows nothing."""

    def begin(self, task: str, *, total: int, unit: str, done: int = 0) -> None:
        """Do nothing."""

    def advance(self, amount: int, **metrics: float) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


SILENT = Silent()
"""For callers that want no progress."""


class Stopwatch:
    """Adds up the wall seconds of each part, by name. Each part belongs to one thread, so nothing is locked."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.began = time.perf_counter()
        self.first: dict[str, float] = {}
        """Seconds from the beginning until something was there for the first time."""

    @contextmanager
    def timing(self, name: str) -> Generator[None]:
        """Add the block's time to the part ``name``, also if it raises."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def note_first(self, name: str) -> None:
        """Something is there; later times do not count."""
        if name not in self.first:
            self.first[name] = time.perf_counter() - self.began
