"""How far a benchmark of many stages is, on the error stream: its table goes to the other one."""

import sys

from common.progress import Silent


class Lines(Silent):
    """Notes, and a line whenever a tenth of a piece of work is done."""

    _title = ""
    _total = 1
    _done = 0

    def begin(self, what: str, *, total: int, unit: str, done: int = 0) -> None:
        del unit
        self._title, self._total, self._done = what, max(total, 1), done

    def advance(self, amount: int, **metrics: float) -> None:
        before = 10 * self._done // self._total
        self._done += amount
        if 10 * self._done // self._total > before:
            known = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            print(f"{self._title}: {self._done:,} of {self._total:,} {known}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
