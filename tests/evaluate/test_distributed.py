"""Several processes find what one does, write one report, and do not wait for one that is gone."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from models.make_synthetic_gemma_scope import make
from transcoder.formats.native import save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

ROOT = Path(__file__).parents[2]
WORLDS = (1, 2, 3)


def run(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("ranks_process.py")), json.dumps(jobs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def given(toy_cache: Path, toy_transcoder: Path) -> dict[str, str]:
    return {"cache": str(toy_cache), "transcoder": str(toy_transcoder)}


@pytest.fixture(scope="module")
def reports(given: dict[str, str], toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of every number of processes, with Google's format and with another run: ``<world>-<kind>``."""
    root = tmp_path_factory.mktemp("together")
    make(toy_cache, root / "scope", l0=5)
    arrays = random_arrays(12, 10, dict_size=32, seed=9)
    save_transcoder(Transcoder(**arrays, rule=TopK(6), prefixes=(8, 32)), root / "second", config={})
    asked = {"google": {"gemma_scope": str(root / "scope")}, "other": {"against": str(root / "second")}}
    jobs = [
        {**given, **asked[kind], "world": world, "out": str(root / f"{world}-{kind}")}
        for kind in asked
        for world in WORLDS
    ]
    for job, result in zip(jobs, run(jobs), strict=True):
        assert result["codes"] == [0] * job["world"], result["output"]
    return root


@pytest.mark.parametrize("kind", ["google", "other"])
@pytest.mark.parametrize("world", [2, 3])
def test_a_comparison_finds_what_one_process_finds(reports: Path, world: int, kind: str) -> None:
    names = {path.name for path in (reports / f"1-{kind}").iterdir()}
    assert {"comparison.json", "ours_metrics.json", f"{kind}_metrics.json", "samples.json"} <= names
    assert {path.name for path in (reports / f"{world}-{kind}").iterdir()} == names
    # The checksums are of files that hold the time of day.
    for name in sorted(name for name in names - {"checksums.json"} if name.endswith(".json")):
        ours, theirs = (json.loads((reports / f"{count}-{kind}" / name).read_text()) for count in (world, 1))
        for document in (ours, theirs):
            document.pop("evaluated_at", None), document.pop("compared_at", None)
        assert_same(ours, theirs)


def test_one_report_is_written(reports: Path) -> None:
    folders = {path.name for path in reports.iterdir()} - {"scope", "second"}
    assert folders == {f"{world}-{kind}" for world in WORLDS for kind in ("google", "other")}


def test_a_process_that_fails_leaves_nobody_waiting(given: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    jobs = [
        {**given, "world": 3, "out": str(tmp_path / "out"), "fault": "refused"},
        {**given, "world": 2, "out": str(tmp_path / "out"), "fault": "killed"},
        {**given, "world": 2, "out": str(tmp_path / "file" / "out")},
    ]
    started = time.monotonic()
    refused, killed, unwritten = run(jobs)
    assert time.monotonic() - started < 60
    assert refused["codes"] == [5, 5, 7]
    assert "not even one row fits" in refused["output"][2]
    assert killed["codes"] == [5, -9]
    assert unwritten["codes"] == [5, 5]
    for output in (*refused["output"][:2], killed["output"][0], unwritten["output"][1]):
        assert "Another process of this run has stopped." in output
        assert len(output.splitlines()) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def assert_same(ours: Any, theirs: Any) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_same(value, theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == (pytest.approx(theirs, rel=1e-10, abs=1e-12) if isinstance(theirs, float) else theirs)


def test_processes_together_take_the_evidence_that_one_takes(given: dict[str, str], tmp_path: Path) -> None:
    """Also where the last process has no block, and the first one alone writes."""
    jobs = [
        {**given, "features": rows, "world": world, "out": str(tmp_path / f"{world}-{rows}")}
        for rows, world in ((1600, 1), (1600, 2), (1600, 3), (150, 1), (150, 3))
    ]
    for job, result in zip(jobs, run(jobs), strict=True):
        assert result["codes"] == [0] * job["world"], result["output"]
    for name in ("evidence.safetensors", "evidence.json", "tokens.json", "report.md"):
        for rows, world in ((1600, 2), (1600, 3), (150, 3)):
            assert (tmp_path / f"{world}-{rows}" / name).read_bytes() == (tmp_path / f"1-{rows}" / name).read_bytes()
