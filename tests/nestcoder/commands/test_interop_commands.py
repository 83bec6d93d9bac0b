"""``export`` on a real tiny run."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from common.errors import NestcoderError, UsageError
from nestcoder.cli import command_line

MODEL = Path(__file__).resolve().parents[3] / "models" / "gpt2-stdlib"


def call(runs: Path, *arguments: str, as_json: bool = False) -> Result:
    options = ["--model", str(MODEL), "--set", f"runs={runs}", *(["--json"] if as_json else [])]
    return CliRunner().invoke(command_line, [*options, *arguments])


def test_export_prints_a_table_and_writes(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = call(tiny_run, "export", "--layer", "8", "--to", "saelens,circuit-tracer", "--dry-run", str(out))
    assert plan.exit_code == 0, plan.output
    assert "11 that never fire" in plan.stdout
    assert not out.exists()
    done = call(tiny_run, "export", "--layer", "8", "--to", "saelens, circuit-tracer", str(out))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["format", "layer", "FVU", "after", "L0", "after"]
    assert "exact" in lines[1]
    assert "approximate" in lines[2]
    assert (out / "circuit_tracer" / "layer_11.safetensors").is_file()
    again = call(tiny_run, "export", "--layer", "8", "--to", "saelens", "--prefix", "16", str(out), as_json=True)
    assert json.loads(again.stdout)[0]["layers"]["8"]["prefix"]["size"] == 16


def test_missing_things_are_refused(tiny_run: Path, tmp_path: Path) -> None:
    refused = call(tiny_run, "export", "--layer", "8", "--name", "none", "--to", "saelens", str(tmp_path / "out"))
    assert isinstance(refused.exception, UsageError)
    with pytest.raises(UsageError, match="'pickle' is not a format"):
        raise call(tiny_run, "export", "--layer", "8", "--to", "pickle", str(tmp_path / "out")).exception  # type: ignore[misc]


def test_import_reads_what_export_wrote(tiny_run: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(tiny_run, runs)
    assert call(runs, "export", "--layer", "8", "--to", "circuit-tracer", str(tmp_path / "out")).exit_code == 0
    done = call(runs, "import", str(tmp_path / "out" / "circuit_tracer"), "--as", "taken", "--layer", "8")
    assert done.exit_code == 0, done.output
    assert "circuit-tracer, ln2_normalized to mlp_out, 64 features, jumprelu" in done.stdout
    evaluated = call(runs, "evaluate", "--layer", "8", "--name", "taken")
    assert evaluated.exit_code == 0, evaluated.output
    trained = call(runs, "train", "--layer", "8", "--name", "taken")
    assert isinstance(trained.exception, NestcoderError)


def test_pages_come_from_the_evidence(tiny_run: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(tiny_run, runs)
    out = tmp_path / "out"
    refused = call(runs, "export", "--layer", "8", "--to", "saelens,neuronpedia", str(out))
    assert isinstance(refused.exception, UsageError)
    assert not out.exists()
    assert call(runs, "features", "--layer", "8").exit_code == 0
    done = call(runs, "export", "--layer", "8", "--to", "circuit-tracer,neuronpedia,delphi", str(out))
    assert done.exit_code == 0, done.output
    assert (out / "circuit_tracer" / "features" / "index.json.gz").is_file()
    assert {"neuronpedia", "delphi"} <= {path.name for path in out.iterdir()}
