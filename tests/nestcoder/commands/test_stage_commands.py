"""What the stages' commands print for people and for programs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import nestcoder
from nestcoder.commands import stage_commands
from nestcoder.invocation import Invocation


@pytest.fixture
def invocation(tiny_run: Path, tiny_settings: Callable[..., nestcoder.PipelineSettings], tmp_path: Path) -> Invocation:
    made = Invocation(None, [], as_json=False)
    made.__dict__["settings"] = tiny_settings(Path(shutil.copytree(tiny_run, tmp_path / "runs")))
    return made


def test_plans_are_facts_one_a_line(invocation: Invocation) -> None:
    harvest = stage_commands.plan_harvest(invocation, [1], "cpu")
    assert len(harvest.text.splitlines()) == len(harvest.data)
    train = stage_commands.plan_train(invocation, [8], "cpu", name="planned")
    assert train.text.startswith("layer 8\n")
    assert train.data["8"]["steps"] == 20


def test_finished_stages_name_their_folders(invocation: Invocation) -> None:
    folders = invocation.folders(8)
    assert stage_commands.harvest(invocation, [8], "cpu", fresh=False).text == f"harvested: {folders.cache}"
    trained = stage_commands.train(invocation, [8], "cpu", name="main", fresh=False)
    assert trained.text == f"trained: {folders.transcoder('main')}"


def test_an_evaluation_ends_with_its_table_and_the_folder_of_the_report(invocation: Invocation) -> None:
    options = stage_commands.EvaluateOptions(name="main", lm=False, gemma_scope=None, against=None, force=False)
    result = stage_commands.evaluate(invocation, [], "cpu", options)
    assert list(result.data) == [8]
    assert result.text.splitlines()[-1] == f"report: {invocation.folders(8).report('main')}"
    assert "held-out tokens" in result.text


def test_the_first_features_are_shown_and_the_others_are_in_the_report(invocation: Invocation) -> None:
    samples = invocation.folders(8).report("main") / "samples.txt"
    samples.write_text("\n\n".join(f"feature {number}" + "\ncontext" * 5 for number in range(9)))
    text = "\n".join(stage_commands.report_lines(invocation, [8], "main"))
    assert text.count("feature ") == 6
    assert text.count("context") == 6 * 3
    assert "Where some features fire most:" in text
