"""``features export``: a folder for each tool, and what is refused."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from common.errors import UsageError
from nestcoder.cli import command_line


def _call(runs: Path, *arguments: str) -> Result:
    return CliRunner().invoke(command_line, ["--json", "--model", "toy", "--set", f"runs={runs}", *arguments])


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("circuit-tracer", {"index.json.gz", "layer_3.bin"}),
        ("neuronpedia", {"toy/3-nestcoder-main/model.jsonl", "toy/3-nestcoder-main/features/batch-0.jsonl.gz"}),
        ("delphi", {"latents/layers.3.mlp/config.json", "latents/layers.3.mlp/0_5.safetensors"}),
        ("jsonl", {"layer03.jsonl.gz"}),
        ("parquet", {"layer03.parquet"}),
    ],
)
def test_each_format_is_written(feature_runs: Path, tmp_path: Path, target: str, files: set[str]) -> None:
    result = _call(feature_runs, "features", "export", "--to", target, "--layer", "3", str(tmp_path / "out"))
    written = json.loads(result.stdout)
    assert files <= set(written["files"])
    assert all((tmp_path / "out" / path).is_file() for path in written["files"])


def test_a_folder_that_is_there_and_missing_evidence_are_refused(feature_runs: Path, tmp_path: Path) -> None:
    arguments = ("features", "export", "--to", "jsonl", "--layer", "3")
    assert isinstance(_call(feature_runs, *arguments, str(tmp_path)).exception, UsageError)
    result = _call(feature_runs, *arguments, "--name", "other", str(tmp_path / "out"))
    assert "no feature evidence" in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["circuit-tracer", "delphi"])
def test_a_dry_run_writes_nothing_and_refuses_what_the_export_refuses(
    feature_runs: Path, tmp_path: Path, target: str
) -> None:
    arguments = ("features", "export", "--dry-run", "--to", target, "--layer", "3")
    plan = json.loads(_call(feature_runs, *arguments, str(tmp_path / "out")).stdout)["3"]
    assert plan["to"] == target
    assert plan["folder"] == str(tmp_path / "out")
    assert plan["bytes_about"] > 0
    assert not (tmp_path / "out").exists()
    assert isinstance(_call(feature_runs, *arguments, str(tmp_path)).exception, UsageError)
