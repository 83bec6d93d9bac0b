"""The bench of a card, at toy sizes on the CPU; a part that fails or hangs loses neither its rows nor others."""

import json
import subprocess
import sys
from pathlib import Path

from bench.gpu import Measurement, run

ROOT = Path(__file__).parents[2]
ROW = '{"what": "first", "value": 1, "unit": "ms"}'


def rows_of(code: str, folder: Path, *, seconds: float = 60) -> list[dict[str, object]]:
    measurement = Measurement("part", [sys.executable, "-c", f"print('{ROW}', flush=True)\n{code}"], limit=60)
    return run(measurement, seconds=seconds, folder=folder, toy=False)


def test_every_part_runs_at_toy_size(warm_python: str, tmp_path: Path) -> None:
    command = [warm_python, "-m", "bench.gpu", "--toy", "--json", str(tmp_path / "gpu.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row for row in rows if "error" in row] == []
    assert done.stdout.count("\n") == len(rows) + 3
    measured = {(row["part"], row["what"].partition(";")[0]) for row in rows}
    assert {name for name, _ in measured} == {"kernels", "step, toy", "harvest", "train", "evaluate"}
    assert ("step, toy", "nestcoder bf16, a tenth dead") in measured
    assert ("kernels", "statistics of a segment's side") in measured
    assert ("harvest", "harvest, start to first token") in measured
    assert all(row.get("same_bits_again", True) for row in rows)


def test_a_failing_part_keeps_its_rows(tmp_path: Path) -> None:
    first, last = rows_of("raise ValueError('no such card')", tmp_path)
    assert first["value"] == 1
    assert last["error"] == "ValueError: no such card"


def test_a_part_that_hangs_is_stopped_and_keeps_its_rows(tmp_path: Path) -> None:
    first, last = rows_of("import time; time.sleep(600)", tmp_path, seconds=6)
    assert first["value"] == 1
    assert last["error"] == "after 6 s"


def test_a_part_without_time_is_named(tmp_path: Path) -> None:
    assert [row["what"] for row in rows_of("", tmp_path, seconds=1)] == ["not run"]
