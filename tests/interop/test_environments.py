"""What is printed while another tool's command runs: its last line, whenever it is a new one."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

_spec = importlib.util.spec_from_file_location("environments", Path(__file__).with_name("environments.py"))
assert _spec is not None
assert _spec.loader is not None
environments = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(environments)


class Command:
    """In a process's place: writes a line of its output whenever it is waited for, and ends behind the last."""

    lines = ("Collecting a", "Installing", "Installing", "Installing", "Done")

    def __init__(self, command: list[str], *, stdout: TextIO, **_: object) -> None:
        self.output = stdout
        self.left = list(self.lines)

    def wait(self, seconds: float) -> int:
        if not self.left:
            return 0
        print(self.left.pop(0), file=self.output, flush=True)
        raise subprocess.TimeoutExpired("", seconds)

    def kill(self) -> None:
        pass


def test_a_line_is_printed_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environments.subprocess, "Popen", Command)
    environments.run([], log=tmp_path / "log", what="tool")
    printed = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()]
    assert printed == ["tool ... Collecting a", "tool ... Installing", "tool ... Done"]


def test_a_failure_says_where_its_log_is(tmp_path: Path) -> None:
    with pytest.raises(environments.ToolError, match=r"code 3; all of its output is in .*log"):
        environments.run([sys.executable, "-c", "raise SystemExit(3)"], log=tmp_path / "log", what="tool")
