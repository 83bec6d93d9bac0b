"""What SIGTERM and Ctrl-C do while a stage runs: leave at once and clean up, or wait until it is safe to leave.

Only the main thread may set handlers; in other threads these functions do nothing.
"""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

# The exit code with which a shell reports a process that a signal ended.
EXIT_ON_SIGTERM = 128 + signal.SIGTERM


@contextmanager
def leaving_on_sigterm() -> Generator[None]:
    """While the block runs, SIGTERM ends it as Ctrl-C does, with SystemExit(143)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(EXIT_ON_SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def noted_signals() -> Generator[list[int]]:
    """While the block runs, SIGTERM and SIGINT are added to the list; a second one acts as it would have before."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = {int(number): signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_for(number: int) -> NoReturn:
    """Leave with the error of a noted signal: KeyboardInterrupt for SIGINT, else SystemExit(128 + number)."""
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
