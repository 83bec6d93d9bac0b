"""Fine-tuning from end to end: the divergence falls, and a killed run ends with the bytes of one that was not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import nestcoder
from common.errors import DamagedError, MismatchError, UsageError
from finetune.state import STATE_FILE
from nestcoder.cli import command_line
from tests.helpers.progress import StopAt, StoppedError

Settings = Callable[..., nestcoder.PipelineSettings]


def files_of(runs: Path, name: str) -> dict[str, bytes]:
    base = runs / "gpt2-stdlib"
    paths = [base / f"layer0{layer}" / "transcoder" / name / "transcoder.safetensors" for layer in (4, 8)]
    paths.append(base / "finetune" / name / "steps.jsonl")
    return {str(path.relative_to(runs)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def tuned(
    trained: Path, settings_in: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    runs = tmp_path_factory.mktemp("tuned") / "runs"
    shutil.copytree(trained, runs)
    return runs, nestcoder.run_finetune(settings_in(runs), [4, 8], device="cpu")


def test_it_trains_saves_and_compares(tuned: tuple[Path, dict[str, Any]], settings_in: Settings) -> None:
    runs, metrics = tuned
    base = runs / "gpt2-stdlib"
    lines = [json.loads(line) for line in (base / "finetune/main-finetuned/steps.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert {line["prefix"] for line in lines} <= {0, 1}
    result = nestcoder.load_transcoder(base / "layer08/transcoder/main-finetuned")
    before = nestcoder.load_transcoder(base / "layer08/transcoder/main")
    assert result.config["finetuned"]["from"] == "main"
    assert result.config["cache_fingerprint"] == before.config["cache_fingerprint"]
    assert not torch.equal(result.W_enc, before.W_enc)
    torch.testing.assert_close(result.W_dec.norm(dim=1), torch.ones(64), atol=1e-5, rtol=0)
    assert [entry["layer"] for entry in metrics["layers"]] == [4, 8]
    old, new = (metrics["language_model"][which]["per_prefix"][-1] for which in ("before", "after"))
    assert new["kl"] < old["kl"], "eight steps of training leave much to gain"
    closed = metrics["language_model"]["closed_per_prefix"][-1]
    assert closed["kl"] == pytest.approx((old["kl"] - new["kl"]) / old["kl"])
    again = nestcoder.run_together(settings_in(runs), [4, 8], name="main-finetuned", device="cpu")
    assert again["language_model"]["per_prefix"][-1]["kl"] == pytest.approx(new["kl"], rel=1e-5)
    table = (base / "finetune/main-finetuned/report/summary.txt").read_text()
    assert "features kept their top token" in table


@pytest.mark.parametrize("step", [1, 3])
def test_a_killed_run_ends_with_the_same_bytes(
    runs: Path, tuned: tuple[Path, dict[str, Any]], settings_in: Settings, step: int
) -> None:
    with pytest.raises(StoppedError):
        nestcoder.run_finetune(settings_in(runs), [4, 8], device="cpu", progress=StopAt(step))
    nestcoder.run_finetune(settings_in(runs), [4, 8], device="cpu")
    assert files_of(runs, "main-finetuned") == files_of(tuned[0], "main-finetuned")


def test_weights_that_were_removed_are_written_again(
    tmp_path: Path, tuned: tuple[Path, dict[str, Any]], settings_in: Settings
) -> None:
    shutil.copytree(tuned[0], tmp_path / "runs")
    (tmp_path / "runs/gpt2-stdlib/layer08/transcoder/main-finetuned/transcoder.safetensors").unlink()
    nestcoder.run_finetune(settings_in(tmp_path / "runs"), [4, 8], device="cpu")
    assert files_of(tmp_path / "runs", "main-finetuned") == files_of(tuned[0], "main-finetuned")


def test_the_command_plans_and_refuses(tuned: tuple[Path, dict[str, Any]], settings_in: Settings) -> None:
    runs, _ = tuned
    given = ["--set", f"runs={runs}", "--set", f"model={settings_in(runs).model}", "--json"]
    done = CliRunner().invoke(command_line, [*given, "finetune", "--layer", "8", "--dry-run", "--device", "cpu"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    plan = json.loads(done.stdout)
    assert plan["context"] == 64
    assert plan["steps"] == 5_000_000 // (8 * 64)
    assert not (runs / "gpt2-stdlib" / "finetune" / "main-finetuned.plan").exists()
    with pytest.raises(UsageError, match="would replace"):
        nestcoder.run_finetune(settings_in(runs), [8], result="main", device="cpu")
    with pytest.raises(UsageError, match="no trained transcoder"):
        nestcoder.run_finetune(settings_in(runs), [8], name="absent", device="cpu")
    with pytest.raises(MismatchError, match="not made by this fine-tuning"):
        nestcoder.run_finetune(settings_in(runs, "finetune.seed=9"), [4, 8], device="cpu")


def test_another_or_a_damaged_state_is_refused(runs: Path, settings_in: Settings) -> None:
    with pytest.raises(StoppedError):
        nestcoder.run_finetune(settings_in(runs), [8], device="cpu", progress=StopAt(3))
    with pytest.raises(MismatchError, match="seed was 0, is now 9"):
        nestcoder.run_finetune(settings_in(runs, "finetune.seed=9"), [8], device="cpu")
    state = runs / "gpt2-stdlib" / "finetune" / "main-finetuned" / "state" / STATE_FILE
    text = state.read_text()
    state.write_text(text.replace('"step": 2', '"step": 3'))
    with pytest.raises(DamagedError, match="does not match its checksum"):
        nestcoder.run_finetune(settings_in(runs), [8], device="cpu")
    nestcoder.run_finetune(settings_in(runs), [8], device="cpu", fresh=True)
    state.write_text(text)
