"""Progress as people read it, on standard error: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from common.disk import in_bytes

_LINE_EVERY_SECONDS = 10.0


def duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def figure(value: float) -> str:
    """A number in at most eight characters."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def rate(value: float, unit: str) -> str:
    """So many units a second, without an exponent."""
    if unit == "bytes":
        return f"{in_bytes(value)}/s"
    return f"{value:,.0f} {unit}/s" if value >= 10 else f"{value:.2f} {unit}/s"


def share(done: int, total: int, unit: str) -> str:
    """``3 of 1,000 steps``; bytes in units that people read."""
    return f"{in_bytes(done)} of {in_bytes(total)}" if unit == "bytes" else f"{done:,} of {total:,} {unit}"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Rate and time left, once there is a rate to speak of."""
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        left = "" if task.time_remaining is None else f"  {duration(task.time_remaining)} left"
        return Text(f"{rate(speed, task.fields['unit'])}{left}", style="cyan")


class TerminalProgress:
    """A bar with rate, time left and the latest figures; see ``common.progress.Progress``."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._bar: Progress | None = None

    def begin(self, task: str, *, total: int, unit: str, done: int = 0) -> None:
        self.end()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=30))
        figures = TextColumn("{task.fields[figures]}", style="dim")
        percentage = TextColumn("{task.percentage:>3.0f} %")
        bar = Progress(*columns, percentage, TimeElapsedColumn(), _Rate(), figures, console=self._console)
        self._bar = bar
        bar.add_task(task, total=total, completed=done, unit=unit, figures="")
        bar.start()

    def advance(self, amount: int, **figures: float) -> None:
        assert self._bar is not None
        task = self._bar.task_ids[0]
        self._bar.advance(task, amount)
        if figures:
            self._bar.update(task, figures="  ".join(f"{name} {figure(value)}" for name, value in figures.items()))

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class LineProgress:
    """One line every ten seconds, first and last always; for logs, pipes and batch systems."""

    def __init__(self, stream: TextIO, every_seconds: float = _LINE_EVERY_SECONDS) -> None:
        self._stream, self._every = stream, every_seconds
        self._task, self._unit, self._total, self._done = "", "", 0, 0
        self._started = self._printed = 0.0
        self._start_done = 0
        self._figures: dict[str, float] = {}
        self._open = False

    def begin(self, task: str, *, total: int, unit: str, done: int = 0) -> None:
        self.end()
        self._task, self._unit, self._total, self._done, self._start_done = task, unit, total, done, done
        self._started, self._printed, self._open, self._figures = time.monotonic(), 0.0, True, {}
        self.note(f"{task}: {share(done, total, unit)}")
        self._printed = self._started

    def advance(self, amount: int, **figures: float) -> None:
        self._done += amount
        self._figures.update(figures)
        if time.monotonic() - self._printed >= self._every:
            self._line()

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def end(self) -> None:
        if self._open:
            self._line()
            self._open = False

    def _line(self) -> None:
        now = time.monotonic()
        speed = (self._done - self._start_done) / max(now - self._started, 1e-9)
        left = f", {duration((self._total - self._done) / speed)} left" if speed and self._done < self._total else ""
        figures = "".join(f"  {name} {figure(value)}" for name, value in self._figures.items())
        head = f"{self._task}: {share(self._done, self._total, self._unit)}, {duration(now - self._started)}"
        self.note(f"{head}, {rate(speed, self._unit)}{left}{figures}")
        self._printed = now


def make_progress() -> TerminalProgress | LineProgress:
    """A bar when standard error is a terminal, lines otherwise."""
    return TerminalProgress(sys.stderr) if sys.stderr.isatty() else LineProgress(sys.stderr)


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of left-aligned columns, two spaces between."""
    widths = [max(len(row[column]) for row in (heading, *rows)) for column in range(len(heading))]
    cells = ([text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in (heading, *rows))
    return ["  ".join(line).rstrip() for line in cells]
