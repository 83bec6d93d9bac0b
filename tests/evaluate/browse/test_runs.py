"""The page of runs says what is in the folder."""

import json
import shutil
from pathlib import Path

import pytest

from evaluate.browse.runs import runs_below


def _by_name(runs: Path) -> dict[str, dict]:
    return {run["name"]: run for run in runs_below(runs)["dictionaries"]}


def test_every_transcoder_is_listed_with_its_numbers(runs: Path) -> None:
    found = _by_name(runs)
    assert {name: run["state"] for name, run in found.items()} == {
        "later": "in training",
        "main": "evaluated",
        "main/k2": "trained",
    }
    main = found["main"]
    metrics = json.loads((runs / "toy/layer03/report/main/metrics.json").read_text())
    assert (main["model"], main["layer"], main["top_k"], main["dict_size"]) == ("toy", 3, 4, 64)
    assert main["fvu"] == metrics["fvu_per_prefix"]
    assert main["l0"] == metrics["l0_per_prefix"]
    assert main["date"] == metrics["evaluated_at"]
    assert main["absorption"] is None
    assert "probe" in main["no_absorption"]
    assert main["summary"] == (runs / "toy/layer03/report/main/summary.txt").read_text()
    for path in (*main["report"], main["features"], main["folder"]):
        assert (runs / path).exists()


def test_without_a_report_the_numbers_are_those_of_the_log(runs: Path) -> None:
    found = _by_name(runs)
    log = (runs / "toy/layer03/transcoder/main/k2/metrics.jsonl").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    held_out = [line for line in lines if "held_out_fvu" in line]
    assert found["main/k2"]["fvu"] == held_out[-1]["held_out_fvu_per_prefix"]
    assert found["main/k2"]["measured"] == "log"
    assert found["later"]["steps"] == 12
    assert found["later"]["dict_size"] is None
    curve = found["main/k2"]["log"]["held_out_fvu"]
    assert [step for step, _ in curve] == [line["step"] for line in held_out]
    assert [value for _, value in curve] == pytest.approx([line["held_out_fvu"] for line in held_out], rel=1e-3)


def test_earlier_reports_and_caches_are_named(runs: Path) -> None:
    found = runs_below(runs)
    (earlier,) = next(run for run in found["dictionaries"] if run["name"] == "main")["earlier"]
    assert earlier["folder"].startswith("toy/layer03/report/main.2")
    assert earlier["fvu"] > 0
    assert [(cache["model"], cache["layer"], cache["train_rows"]) for cache in found["caches"]] == [
        ("bare", 11, 512),
        ("toy", 3, 512),
    ]


def test_long_curves_are_thinned_and_keep_their_last_point(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(runs / "toy" / "layer03" / "transcoder", copy / "toy" / "layer03" / "transcoder")
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, 5001)]
    (copy / "toy/layer03/transcoder/main/metrics.jsonl").write_text("\n".join(lines) + "\n")
    curve = _by_name(copy)["main"]["log"]["loss"]
    assert 100 < len(curve) <= 161
    assert curve[0] == [1, 1.0]
    assert curve[-1] == [5000, 0.0002]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("transcoder/main/config.json", "{"),
        ("transcoder/main/metrics.jsonl", '{"step": 1, "loss": 0.5}\nnot json\n'),
        ("report/main/metrics.json", "[1, 2]"),
    ],
)
def test_a_damaged_file_is_a_problem_of_its_run_only(runs: Path, tmp_path: Path, file: str, text: str) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    (copy / "toy" / "layer03" / file).write_text(text)
    found = _by_name(copy)
    assert Path(file).name in found["main"]["problem"]
    assert "problem" not in found["main/k2"]


def test_an_empty_folder_has_no_runs(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "model" / "layer").mkdir(parents=True)
    found = runs_below(tmp_path)
    assert (found["dictionaries"], found["caches"]) == ([], [])
