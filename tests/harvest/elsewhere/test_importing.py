"""A folder from elsewhere goes through the commands: planned, imported, trained on, evaluated, and named unproved."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from common.errors import UsageError
from nestcoder.cli import command_line

SMALL = (
    "cache.dtype=float32", "cache.held_out_fraction=0.3", "train.steps=6", "train.warmup_steps=2",
    "train.batch_rows=64", "train.held_out_rows=64", "train.prefixes=[16, 64]", "train.top_k=4",
    "evaluate.bootstrap=10",
)  # fmt: skip


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(40, 16, 12, generator=generator)
    target = (source @ torch.randn(12, 10, generator=generator)).relu()
    tokens = torch.randint(1, 40, (40, 16), generator=generator)
    (tmp_path / "rows").mkdir()
    save_file({"source": source, "target": target, "tokens": tokens}, tmp_path / "rows" / "0.safetensors")
    options = [*SMALL, f"runs={tmp_path / 'runs'}", "model=theirs"]
    return ["--json", *(item for option in options for item in ("--set", option))]


def run(arguments: list[str]) -> dict:
    done = CliRunner().invoke(command_line, arguments)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_planned_imported_trained_and_evaluated(given: list[str], tmp_path: Path) -> None:
    sites = ["--source-site", "mlp_in", "--target-site", "mlp_out"]
    imported = ["cache", "import", str(tmp_path / "rows"), "--layer", "3"]
    with pytest.raises(UsageError, match="do not name their site"):
        run([*given, *imported])
    plan = run([*given, *imported, *sites, "--dry-run"])
    assert (plan["kind"], plan["examples"], plan["train_rows"] + plan["held_out_rows"]) == ("safetensors", 40, 640)
    assert (plan["source_site"], plan["target_site"]) == ("mlp_in", "mlp_out")
    with pytest.raises(UsageError, match="Give --target-site"):
        run([*given, *imported, *sites[:2], "--dry-run"])
    assert not (tmp_path / "runs").exists()
    done = run([*given, *imported, *sites])
    assert done["provenance"] == "unproved"
    assert run([*given, *imported, *sites])["fingerprint"] == done["fingerprint"]
    run([*given, "train", "--layer", "3", "--device", "cpu"])
    run([*given, "evaluate", "--layer", "3", "--device", "cpu"])
    report = tmp_path / "runs" / "theirs" / "layer03" / "report" / "main"
    assert json.loads((report / "metrics.json").read_text())["cache"]["provenance"] == "unproved"
    assert "Provenance unproved" in (report / "summary.txt").read_text()
    run([*given, "features", "--layer", "3", "--device", "cpu"])
    features = tmp_path / "runs" / "theirs" / "layer03" / "features" / "main"
    assert json.loads((features / "evidence.json").read_text())["cache"]["provenance"] == "unproved"
    assert "Provenance unproved" in (features / "report.md").read_text()
    info = CliRunner().invoke(command_line, ["cache", "info", str(report.parents[1] / "cache")])
    assert "provenance   unproved" in info.output


def test_a_cache_without_targets_has_no_target_site(given: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((64, 5), np.float32))
    imported = ["cache", "import", str(tmp_path), "--layer", "3", "--source-site", "resid_post", "--dry-run"]
    assert run([*given, "--set", "cache.held_out_fraction=0", *imported])["target_site"] == "none"


def test_examples_of_several_widths_are_refused(given: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 5), np.float32))
    np.save(tmp_path / "b.npy", np.zeros((4, 6), np.float32))
    with pytest.raises(UsageError, match="Batch 1: the source has width 6, in earlier batches 5"):
        run([*given, "cache", "import", str(tmp_path), "--layer", "3", "--source-site", "resid_post"])
