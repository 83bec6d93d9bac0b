"""How a stage says how far it is. The command line draws it; a library caller may pass ``Silent``."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Begun once a task; ``metrics`` are the latest values of named quantities (loss, fvu, ...)."""

    def begin(self, task: str, *, total: int, unit: str, done: int = 0) -> None: ...

    def advance(self, amount: int, **metrics: float) -> None: ...

    def note(self, text: str) -> None: ...

    def end(self) -> None: ...


class Silent:
    """Says nothing."""

    def begin(self, task: str, *, total: int, unit: str, done: int = 0) -> None:
        pass

    def advance(self, amount: int, **metrics: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def end(self) -> None:
        pass
