"""The command line as users see it: a real process, its exit code, and what it prints on which stream."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.errors import UsageError
from nestcoder.cli import command_line

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "nestcoder", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_help_lists_the_stages_and_the_exit_codes() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in ("harvest", "train", "evaluate", "cache", "doctor", "Exit codes", "143 SIGTERM"):
        assert word in done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv[0] = 'nestcoder'\nfrom nestcoder.__main__ import main\ntry:\n  main(['harvest', '-h'])\n"
    )
    code += "except SystemExit: pass\nprint(sorted({name.split('.')[0] for name in sys.modules}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "--layer" in done.stdout
    for heavy in ("torch", "transformers", "transformer_lens", "zarr", "datasets", "wandb", "pydantic", "rich"):
        assert f"'{heavy}'" not in done.stderr


def test_help_is_quick() -> None:
    """Under half a second of processor time on any machine that can train; several tries, the best counts."""

    def seconds() -> float:
        started = time.perf_counter()
        run("--help")
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 0.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["havrest"], ["harvest"]),
        (["harvest"], ["--layer"]),
        (["harvest", "--layer", "x"], ["x"]),
        (["--config", "absent.yaml", "config", "show"], ["absent.yaml"]),
        (["--set", "train.lrr=1", "config", "show"], ["train.lrr", "Did you mean 'lr'"]),
        (["--set", "nonsense", "config", "show"], ["KEY=VALUE"]),
        (["--set", "train.steps=many", "config", "show"], ["--set train.steps=many", "integer"]),
    ],
)
def test_wrong_arguments_are_one_problem_of_three_lines(arguments: list[str], words: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_every_problem_of_a_file_is_named_at_once_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("modle: gpt2\ntrain:\n  steps: soon\n  top_k: -1\nharvest:\n  contxt: 3\n")
    done = run("--config", str(file), "config", "show")
    assert done.returncode == 2
    for line in ("p.yaml:1", "p.yaml:3", "p.yaml:4", "p.yaml:6"):
        assert line in done.stderr
    assert "Did you mean 'model'" in done.stderr
    assert "Did you mean 'context'" in done.stderr


def test_only_json_goes_to_standard_output() -> None:
    done = run("--json", "config", "show")
    assert done.returncode == 0
    assert done.stdout.lstrip().startswith("{")
    assert done.stderr == ""


@pytest.mark.parametrize("command", [["train", "--layer", "8"], ["evaluate", "--layer", "8"], ["evaluate"]])
def test_a_missing_cache_says_what_to_do(command: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(command_line, ["--set", f"runs={tmp_path}", *command])
    assert isinstance(done.exception, UsageError)
    assert "harvest" in str(done.exception)


def test_a_package_of_the_same_name_from_elsewhere_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "__init__.py").touch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-m", "nestcoder", "config", "show"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "evaluate" in done.stderr
    assert "Traceback" not in done.stderr
