"""Small files that may be missing or damaged."""

from pathlib import Path

from common import disk
from evaluate.browse.files import curves_of, link_to, log_lines, read_object, read_text, report_files


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    entry = {}
    assert read_object(tmp_path / "none.json", entry) == {}
    assert "none.json" in entry["problem"]
    disk.write_file(tmp_path / "log.jsonl", b"{\n")
    assert log_lines(tmp_path / "log.jsonl", entry) == []
    assert entry["problem"].startswith("log.jsonl does not read")
    assert log_lines(tmp_path / "none.jsonl", {}) == []
    assert read_text(tmp_path / "none.txt", {}) is None


def test_links_are_relative_and_plots_come_first(tmp_path: Path) -> None:
    for name in ("b.txt", "a.json", "c.svg", "d.npz"):
        disk.write_file(tmp_path / "report" / name, b"")
    assert [path.name for path in report_files(tmp_path / "report")] == ["c.svg", "a.json", "b.txt"]
    assert link_to(tmp_path / "report" / "b.txt", tmp_path) == "report/b.txt"
    assert link_to(tmp_path / "report" / "e.txt", tmp_path) is None


def test_a_long_curve_keeps_its_last_point() -> None:
    curve = curves_of([{"step": step, "loss": step / 2} for step in range(1, 1000)])["loss"]
    assert len(curve) <= 161
    assert curve[-1] == [999, 499.5]
