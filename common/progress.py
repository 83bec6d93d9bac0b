"""How a stage says how far it is. The command line draws it; a library caller may pass ``Silent``."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Begun once a task; ``metrics`` are the latest values of named quantities (loss, fvu, ...)."""

    def begin(self, task: str, *, total: int, unit: str, done: int = 0) -> None:
        """A task begins, of ``total`` units, ``done`` of which were done earlier."""

    def advance(self, amount: int, **metrics: float) -> None:
        """``amount`` more units are done."""

    def note(self, text: str) -> None:
        """A sentence that the reader should see."""

    def end(self) -> None:
        """The task is over, finished or not."""


class Silent:
    """Says nothing."""

    def begin(self, task: str, *, total: int, unit: str, done: int = 0) -> None:
        """Nothing."""

    def advance(self, amount: int, **metrics: float) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


SILENT = Silent()
"""For callers that want to hear nothing."""
