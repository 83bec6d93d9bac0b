"""A report appears complete or not at all, whatever other processes do and whatever was there before."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from common import disk
from common.errors import DiskError
from common.sealed.checksums import CHECKSUMS_FILE
from evaluate.report.report import read_earlier, write_report

WRITERS, REPORTS = 4, 5


def files(number: int) -> dict[str, bytes]:
    metrics = {"evaluated_at": "2026-11-27T10:00:00+00:00", "number": number}
    return {"metrics.json": json.dumps(metrics).encode(), "summary.txt": f"{number}".encode() * 1000}


def write_many(out: Path, first: int) -> None:
    for number in range(first, first + REPORTS):
        write_report(out, files(number))


def test_evaluations_that_end_at_once_all_write_complete_reports(tmp_path: Path) -> None:
    out = tmp_path / "report" / "main"
    with ProcessPoolExecutor(WRITERS, mp_context=get_context("fork")) as writers:
        for written in [writers.submit(write_many, out, 100 * writer) for writer in range(WRITERS)]:
            written.result(timeout=60)
    folders = list(out.parent.iterdir())
    numbers = {json.loads((folder / "metrics.json").read_bytes())["number"] for folder in folders}
    assert numbers == {100 * writer + number for writer in range(WRITERS) for number in range(REPORTS)}
    assert out in folders
    for folder in folders:
        number = json.loads((folder / "metrics.json").read_bytes())["number"]
        written = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != CHECKSUMS_FILE}
        assert written == files(number)


def test_an_unfinished_folder_that_is_removed_by_another_process_fails_no_report(tmp_path: Path) -> None:
    (tmp_path / ".main.host-1.unfinished").symlink_to(tmp_path / "gone")  # listed, and not there when it is asked
    assert write_report(tmp_path / "main", files(1)) is None
    assert (tmp_path / "main" / "summary.txt").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "not JSON"),
        (b"[1]", "no JSON object"),
        (b"[" * 100_000, "not JSON"),
        (b'{"evaluated_at": "../../../etc"}', None),
        (b'{"evaluated_at": [1]}', None),
        (None, "no metrics.json"),
    ],
)
def test_a_malformed_older_report_does_not_stop_a_new_one(
    tmp_path: Path, content: bytes | None, problem: str | None
) -> None:
    out = tmp_path / "main"
    out.mkdir()
    if content is not None:
        (out / "metrics.json").write_bytes(content)
    found = read_earlier(out)[1]
    assert (found is None) if problem is None else (problem in (found or ""))
    earlier = write_report(out, files(1))
    assert earlier is not None
    assert earlier.parent == tmp_path
    assert earlier.name.startswith("main.20")
    assert (earlier / "metrics.json").exists() == (content is not None)
    assert (out / "summary.txt").exists()


def test_what_a_killed_evaluation_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    old, recent = (tmp_path / f".main.{name}.unfinished" for name in ("host-1", "host-2"))
    for folder in (old, recent):
        folder.mkdir()
    os.utime(old, (0, 0))
    write_report(tmp_path / "main", files(1))
    assert not old.exists()
    assert recent.exists()


def test_a_disk_that_refuses_leaves_no_incomplete_report(tmp_path: Path) -> None:
    def refuse(moment: str, operation: str, path: Path) -> None:
        if operation == "rename" and path.name == "main" and moment == "before":
            raise OSError(28, "No space left on device")

    with disk.watch(refuse), pytest.raises(DiskError):
        write_report(tmp_path / "main", files(1))
    assert list(tmp_path.iterdir()) == []
