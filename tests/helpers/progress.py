"""Progress that a test reads, or that ends a run from within."""

from common.progress import Silent


class Notes(Silent):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


class StoppedError(Exception):
    """Ends a run from within, as a kill or an error elsewhere would."""


class StopAt(Silent):
    """Raises StoppedError when this many steps are done."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, amount: int, **metrics: float) -> None:
        self.left -= amount
        if self.left <= 0:
            raise StoppedError
