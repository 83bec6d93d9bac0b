"""What SIGTERM and Ctrl-C do while a stage runs."""

import os
import signal
import threading

import pytest

from common.processes.signals import leave_for, leaving_on_sigterm, noted_signals


def interrupted(tidied: list[str]) -> None:
    with leaving_on_sigterm():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            tidied.append("yes")


def test_sigterm_unwinds_the_block_with_143_and_the_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    tidied: list[str] = []
    with pytest.raises(SystemExit) as left:
        interrupted(tidied)
    assert left.value.code == 143
    assert tidied == ["yes"]
    assert signal.getsignal(signal.SIGTERM) is before


def signalled_twice(found: list[list[int]]) -> None:
    with noted_signals() as noted:
        os.kill(os.getpid(), signal.SIGINT)
        found.append(list(noted))
        os.kill(os.getpid(), signal.SIGINT)


def test_the_first_signal_is_noted_and_the_second_acts() -> None:
    found: list[list[int]] = []
    with pytest.raises(KeyboardInterrupt):
        signalled_twice(found)
    assert found == [[signal.SIGINT]]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_installs_no_handler() -> None:
    found: list[list[int]] = []

    def work() -> None:
        with leaving_on_sigterm(), noted_signals() as noted:
            found.append(noted)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [[]]


def test_a_process_exits_with_the_code_of_the_signal() -> None:
    with pytest.raises(SystemExit) as left:
        leave_for(signal.SIGTERM)
    assert left.value.code == 143
    with pytest.raises(KeyboardInterrupt):
        leave_for(signal.SIGINT)
