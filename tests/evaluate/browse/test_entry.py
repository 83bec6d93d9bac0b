"""Names that have begun, and what an entry says before there is a report."""

from pathlib import Path

from common import disk
from common.run_layout import RunFolders
from evaluate.browse.entry import begun, names_of, reported, spliced_numbers


def test_only_runs_that_have_begun_have_a_name(tmp_path: Path) -> None:
    top = tmp_path / "layer08" / "transcoder"
    for path in ("a/config.json", "b/metrics.jsonl", "b/k2/config.json", "c/notes.txt", ".d/config.json"):
        disk.write_file(top / path, b"")
    disk.write_file(top / "e" / "checkpoints" / "1" / "config.json", b"")
    assert names_of(RunFolders(tmp_path / "layer08")) == ["a", "b", "b/k2", "e"]


def test_without_a_config_the_numbers_are_those_of_the_log(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    disk.write_file(folder / "metrics.jsonl", b'{"step": 2, "tokens": 64, "l0_per_prefix": [4.0], "dead": 0.5}\n')
    entry = begun(tmp_path, folder, {"name": "x"})
    assert (entry["name"], entry["kind"], entry["state"]) == ("x", "transcoder", "in training")
    assert (entry["l0"], entry["dead"], entry["tokens"], entry["measured"]) == ([4.0], [0.5], 64, "log")
    disk.write_file(folder / "config.json", b'{"kind": "sae", "dead": 0.25, "steps": 3}')
    entry = begun(tmp_path, folder, {"name": "x"})
    assert (entry["kind"], entry["state"], entry["dead"], entry["steps"]) == ("sae", "trained", [0.25], 3)


def test_numbers_of_the_language_model_are_by_prefix() -> None:
    assert spliced_numbers(None) == {"delta": None, "kl": None, "top1": None}
    numbers = spliced_numbers({"per_prefix": [{"delta": 0.5, "kl": 0.1}, {"delta": 0.25}]})
    assert numbers == {"delta": [0.5, 0.25], "kl": [0.1, None], "top1": [None, None]}


def test_a_summary_too_large_is_a_problem_of_the_entry(tmp_path: Path) -> None:
    report = tmp_path / "report" / "main"
    disk.write_file(report / "summary.txt", b"x" * (1 << 19))
    disk.write_file(tmp_path / "report" / "main.2026-11-27T10-00-00" / "metrics.json", b'{"fvu": 0.5}')
    entry = {}
    found = reported(tmp_path, report, entry)
    assert found["summary"] is None
    assert "summary.txt" in entry["problem"]
    assert found["report"] == ["report/main/summary.txt"]
    assert [earlier["fvu"] for earlier in found["earlier"]] == [0.5]
