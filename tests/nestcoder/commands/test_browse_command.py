"""The ``browse`` command: the page in the runs folder, the server until it is told to end, and what is refused."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from click.testing import CliRunner

from nestcoder.cli import command_line


def test_the_page_is_written_into_the_runs_folder(tmp_path: Path) -> None:
    result = CliRunner().invoke(command_line, ["--json", "--set", f"runs={tmp_path}", "browse"])
    assert json.loads(result.stdout) == {"page": str(tmp_path / "index.html")}
    assert (tmp_path / "index.html").read_text().startswith("<!doctype html>")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(command_line, ["--set", f"runs={tmp_path / 'none'}", "browse"])
    assert "no runs folder" in str(result.exception)


def test_it_serves_until_ctrl_c(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nestcoder", "--json", "--set", f"runs={tmp_path}", "browse", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdout
        lines = [process.stdout.readline() for _ in range(3)]
        url = json.loads("".join(lines))["url"]
        with urllib.request.urlopen(url) as answer:
            assert b"<!doctype html>" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
