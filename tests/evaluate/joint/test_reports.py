"""Which report on several layers has a dictionary, and which of several is the newest."""

import json
from pathlib import Path

import pytest

from common import disk
from evaluate.joint.reports import is_current, newest_reports


@pytest.mark.parametrize(
    ("name", "current"),
    [("main", True), ("v.2026", True), ("main.2026-11-27T10:00:00Z", False), (".main.host-7.unfinished", False)],
)
def test_what_was_put_aside_or_never_finished_is_not_of_today(name: str, current: bool) -> None:
    assert is_current(Path("report") / name) is current


def test_the_newest_report_on_each_dictionary(tmp_path: Path) -> None:
    def report(name: str, date: str, *measured: str) -> None:
        document = {"evaluated_at": date, "dictionaries": {key: {"fvu": date} for key in measured}}
        disk.write_file(tmp_path / name / "metrics.json", json.dumps(document).encode())

    report("clt", "2026-02", "clt", "main")
    report("main", "2026-01", "main")
    report("deep/er", "2026-03", "clt")
    report("clt.2027-01-01T00:00:00Z", "2027", "clt")
    disk.write_file(tmp_path / "damaged" / "metrics.json", b"{")
    disk.write_file(tmp_path / "other" / "metrics.json", b'{"dictionaries": 3}')
    found = newest_reports(tmp_path)
    assert {name: path.relative_to(tmp_path).as_posix() for name, (path, _) in found.items()} == {
        "main": "clt",
        "clt": "deep/er",
    }
    assert found["main"][1]["dictionaries"]["main"] == {"fvu": "2026-02"}
    assert newest_reports(tmp_path / "nothing") == {}
