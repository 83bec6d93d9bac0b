"""Progress for people, on standard error: a bar on a terminal, or a line every ten seconds in a log."""

import sys
import textwrap
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from common.processes.signals import leaving_on_sigterm
from common.units import amount_done, duration, rate, short_number
from nestcoder.text import printable

_LINE_EVERY_SECONDS = 10.0
"""Often enough to see that a run goes on, and some thousand lines for a run of a night."""
_WIDTH = 119
"""The longest line in a log, unless a path is longer."""


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Rate and time left, after some work has been done."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        left = "" if task.time_remaining is None else f"  {duration(task.time_remaining)} left"
        return Text(f"{rate(speed, task.fields['unit'])}{left}", style="cyan")


class TerminalProgress:
    """A bar with rate, time left and the latest metrics; see ``common.progress.Progress``."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._bar: Progress | None = None

    def begin(self, task: str, *, total: int, unit: str, done: int = 0) -> None:
        """A bar for the task."""
        self.end()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30))
        metrics = TextColumn("{task.fields[metrics]}", style="dim")
        percentage = TextColumn("{task.percentage:>3.0f} %")
        bar = Progress(*columns, percentage, TimeElapsedColumn(), _Rate(), metrics, console=self._console)
        self._bar = bar
        bar.add_task(task, total=total, completed=done, unit=unit, metrics="")
        bar.start()

    def advance(self, amount: int, **metrics: float) -> None:
        """The bar moves on, with the latest metrics."""
        assert self._bar is not None
        task = self._bar.task_ids[0]
        self._bar.advance(task, amount)
        if metrics:
            self._bar.update(
                task, metrics="  ".join(f"{name} {short_number(value)}" for name, value in metrics.items())
            )

    def note(self, text: str) -> None:
        """A line above the bar."""
        # The terminal wraps lines itself: a path with line ends in it could not be copied.
        self._console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def end(self) -> None:
        """The bar stays as it is."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class LineProgress:
    """One line every ten seconds, and always a first and a last one; for logs, pipes and batch systems."""

    def __init__(self, stream: TextIO, every_seconds: float = _LINE_EVERY_SECONDS) -> None:
        self._stream = stream
        self._every_seconds = every_seconds
        self._open = False
        self._task = ""
        self._unit = ""
        self._total = 0
        self._done = 0
        self._done_at_start = 0
        self._metrics: dict[str, float] = {}
        self._started = 0.0
        self._printed = 0.0

    def begin(self, task: str, *, total: int, unit: str, done: int = 0) -> None:
        """A line that names the task."""
        self.end()
        self._open = True
        self._task = task
        self._unit = unit
        self._total = total
        self._done = done
        self._done_at_start = done
        self._metrics = {}
        self.note(f"{task}: {amount_done(done, total, unit)}")
        self._started = time.monotonic()
        self._printed = self._started

    def advance(self, amount: int, **metrics: float) -> None:
        """A line every ten seconds: done, rate, time left, metrics."""
        self._done += amount
        self._metrics.update(metrics)
        if time.monotonic() - self._printed >= self._every_seconds:
            self._print_line()

    def note(self, text: str) -> None:
        """A line."""
        for line in printable(text).split("\n"):
            # Only at spaces: a broken path cannot be read or copied.
            wrapped = textwrap.wrap(line, _WIDTH, break_on_hyphens=False, break_long_words=False)
            print("\n".join(wrapped), file=self._stream, flush=True)

    def end(self) -> None:
        """A last line with the time that the task took."""
        if self._open:
            self._print_line()
            self._open = False

    def _print_line(self) -> None:
        """Print the state of the task, and as many of the latest metrics as fit into the line."""
        now = time.monotonic()
        speed = (self._done - self._done_at_start) / max(now - self._started, 1e-9)  # a clock may show no time at all
        left = f", {duration((self._total - self._done) / speed)} left" if speed and self._done < self._total else ""
        so_far = amount_done(self._done, self._total, self._unit)
        line = f"{self._task}: {so_far}, {duration(now - self._started)}, {rate(speed, self._unit)}{left}"
        for name, value in self._metrics.items():
            item = f"  {name} {short_number(value)}"
            if len(line) + len(item) <= _WIDTH:
                line += item
        self.note(line)
        self._printed = now


def make_progress() -> TerminalProgress | LineProgress:
    """A bar if standard error is a terminal, else lines."""
    return TerminalProgress(sys.stderr) if sys.stderr.isatty() else LineProgress(sys.stderr)


@contextmanager
def shown_progress() -> Generator[TerminalProgress | LineProgress]:
    """Progress on standard error while the block runs; SIGTERM ends the block as Ctrl-C does, with exit code 143."""
    progress = make_progress()
    with leaving_on_sigterm():
        try:
            yield progress
        finally:
            progress.end()
