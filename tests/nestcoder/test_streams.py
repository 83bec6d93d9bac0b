"""Standard streams that break: progress is lost, work and exit code are not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FULL = Path("/dev/full")

# Reports progress and warns as a long command does, opens a file as a cache's writer does, and prints a result.
COMMAND = """
import sys, warnings
from pathlib import Path
import click
from nestcoder import cli
from nestcoder.__main__ import main
from nestcoder.invocation import CommandResult
from nestcoder.progress import shown_progress

@cli.command_line.command()
@click.argument("path", type=Path)
@click.pass_obj
def work(invocation, path):
    with shown_progress() as progress, path.open("wb", buffering=0) as file:
        progress.begin("work", total=500, unit="steps")
        for step in range(500):
            progress.advance(1, loss=0.5)
            progress.note(f"at step {step} " + 100 * "x")
            warnings.warn("a library warns")
            file.write(b"row")
    invocation.show(CommandResult({"steps": 500}, "result\\n" * 20000))
main()
"""


def run(path: Path, shell_ending: str) -> subprocess.CompletedProcess[bytes]:
    command = f'set -o pipefail; "{sys.executable}" -c "$CODE" work {path} {shell_ending}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CODE": COMMAND}
    return subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, timeout=120)


@pytest.mark.parametrize(
    "ending", ["2>&-", "2>/dev/full", "2>&1 | head -1", ">&- 2>&-", "<&- >&- 2>&-", "| true", "2>&1 | true"]
)
def test_work_goes_on_when_standard_error_is_closed(ending: str, tmp_path: Path) -> None:
    if str(FULL) in ending and not FULL.exists():
        pytest.fail("this system has no /dev/full: leave the case out for it")
    done = run(tmp_path / "shard", ending)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stdout + done.stderr
    assert b"BrokenPipe" not in done.stdout + done.stderr
    assert (tmp_path / "shard").read_bytes() == 500 * b"row"


def test_a_result_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    if not FULL.exists():
        pytest.fail("this system has no /dev/full: leave the case out for it")
    done = run(tmp_path / "shard", "> /dev/full")
    assert done.returncode == 5
    assert b"could not be written to standard output: No space left on device" in done.stderr
    assert b"Traceback" not in done.stderr


def test_what_a_reader_gets_is_complete(tmp_path: Path) -> None:
    done = run(tmp_path / "shard", "")
    assert done.stdout == b"result\n" * 20000 + b"\n"
    assert b"work: 500 of 500 steps" in done.stderr
    assert max(map(len, done.stderr.splitlines())) < 120
