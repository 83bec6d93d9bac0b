"""Every problem is printed as three lines with its exit code, and only a real interrupt says so."""

import errno

import click
import pytest

from common.errors import DamagedError
from nestcoder import entry


@pytest.fixture
def leaving(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command that raises ``problem``; its exit code and what it wrote."""
    monkeypatch.setattr(entry, "protect_standard_streams", lambda: None)

    def run(problem: BaseException) -> tuple[object, str]:
        def fail(**_options: object) -> None:
            raise problem

        monkeypatch.setattr("nestcoder.cli.command_line.main", fail)
        with pytest.raises(SystemExit) as left:
            entry.run([])
        return left.value.code, capsys.readouterr().err

    return run


def aborted(cause: BaseException) -> click.Abort:
    """What click raises for Ctrl-C and for a file that ends too early."""
    try:
        raise click.Abort from cause
    except click.Abort as error:
        return error


def test_a_stated_problem_is_three_lines(leaving) -> None:
    code, text = leaving(DamagedError("What.", where="a\x1b[31m.bin", remedy="Do this."))
    assert (code, text) == (3, "nestcoder: What.\n  a\\x1b[31m.bin\n  Do this.\n")


@pytest.mark.parametrize("problem", [KeyboardInterrupt(), aborted(KeyboardInterrupt())])
def test_an_interrupt_says_so(leaving, problem: BaseException) -> None:
    code, text = leaving(problem)
    assert code == 130
    assert "Interrupted" in text


def test_a_file_that_ends_too_early_is_no_interrupt(leaving) -> None:
    code, text = leaving(aborted(EOFError("Compressed file ended before the end-of-stream marker was reached")))
    assert code == 3
    assert "ends too early" in text
    assert "Interrupted" not in text


def test_what_the_system_refuses_is_one_sentence(leaving) -> None:
    code, text = leaving(PermissionError(errno.EACCES, "Permission denied", "secret.bin"))
    assert code == 5
    assert text.startswith("nestcoder: The system refused: Permission denied.\n  secret.bin\n")
    assert leaving(OSError("no number"))[0] == 5
    code, text = leaving(MemoryError("Unable to allocate 7 TB"))
    assert code == 7
    assert "Out of memory. Unable to allocate 7 TB" in text


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "protect_standard_streams", lambda: None)

    def fail(**_options: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("nestcoder.cli.command_line.main", fail)
    with pytest.raises(RuntimeError, match="ours"):
        entry.run([])


def test_a_wrong_option_is_named_without_escape_sequences(leaving) -> None:
    code, text = leaving(click.UsageError("No such option: \x1b[2J"))
    assert code == 2
    assert "\\x1b[2J" in text
