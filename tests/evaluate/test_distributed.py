"""Several processes find what one does, write one report, and do not wait for one that ended."""

import json
import os
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from common.distributed import process_group, read_ranks
from common.errors import CapacityError, NestcoderError
from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.features.config import FeatureSettings
from evaluate.features.run import features_of_layer
from evaluate.run import evaluate_layer
from models.make_synthetic_gemma_scope import make
from transcoder.formats.native import save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

WORLDS = (1, 2, 3)
SECONDS = 60
"""After this time a process that waits for another is stopped."""


class Faulty(Silent):
    """Progress that ends its process."""

    def __init__(self, fault: str | None) -> None:
        self._fault = fault

    def advance(self, amount: int, **values: float) -> None:
        if self._fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self._fault == "refused":
            raise CapacityError("not even one row fits")


def evaluate(task: dict[str, Any], *, rank: int) -> None:
    world, fault = task["world"], task.get("fault")
    paths = {name: Path(task[name]) for name in ("cache", "transcoder", "out")}
    if task.get("features"):
        with process_group(read_ranks(), "cpu"):
            features_of_layer(
                **paths,
                settings=FeatureSettings(block_rows=96, context_tokens=3, rows=task["features"]),
                device="cpu",
                progress=Faulty(fault if rank == world - 1 else None),
            )
        return
    with process_group(read_ranks(), "cpu"):
        evaluate_layer(
            **paths,
            settings=EvaluateSettings(bootstrap=20, batch_rows=96),
            device="cpu",
            gemma_scope=task.get("gemma_scope"),
            against=Path(task["against"]) if "against" in task else None,
            progress=Faulty(fault if rank == world - 1 else None),
        )


def forked(task: dict[str, Any], *, rank: int, port: int, output: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(SECONDS)
        known = {"RANK": rank, "WORLD_SIZE": task["world"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in known.items()}
        evaluate(task, rank=rank)
        code = 0
    except NestcoderError as error:
        code = error.exit_code
        output.write_text(str(error))
    finally:
        os._exit(code)


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Exit codes of a job's processes, which are forks of this one, and what they state."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(rank) for rank in range(task["world"])]
        children = [forked(task, rank=rank, port=port, output=path) for rank, path in enumerate(outputs)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        return {"codes": codes, "output": [path.read_text() if path.exists() else "" for path in outputs]}


@pytest.fixture(scope="module")
def given(toy_cache: Path, toy_transcoder: Path) -> dict[str, str]:
    return {"cache": str(toy_cache), "transcoder": str(toy_transcoder)}


@pytest.fixture(scope="module")
def reports(given: dict[str, str], toy_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of every number of processes, with Google's format and with another run: ``<world>-<kind>``."""
    root = tmp_path_factory.mktemp("reports")
    make(toy_cache, root / "scope", l0=5)
    arrays = random_arrays(12, 10, dict_size=32, seed=9)
    save_transcoder(Transcoder(**arrays, rule=TopK(6), prefixes=(8, 32)), root / "second", config={})
    requests = {"google": {"gemma_scope": str(root / "scope")}, "other": {"against": str(root / "second")}}
    tasks = [
        {**given, **requests[kind], "world": world, "out": str(root / f"{world}-{kind}")}
        for kind in requests
        for world in WORLDS
    ]
    for task in tasks:
        result = run(task)
        assert result["codes"] == [0] * task["world"], result["output"]
    return root


@pytest.mark.parametrize("kind", ["google", "other"])
@pytest.mark.parametrize("world", [2, 3])
def test_a_comparison_finds_what_one_process_finds(reports: Path, world: int, kind: str) -> None:
    names = {path.name for path in (reports / f"1-{kind}").iterdir()}
    assert {"comparison.json", "ours_metrics.json", f"{kind}_metrics.json", "samples.json"} <= names
    assert {path.name for path in (reports / f"{world}-{kind}").iterdir()} == names
    # The checksums are of files that hold the time of day.
    for name in sorted(name for name in names - {"checksums.json"} if name.endswith(".json")):
        ours, reference = (json.loads((reports / f"{count}-{kind}" / name).read_text()) for count in (world, 1))
        for document in (ours, reference):
            document.pop("evaluated_at", None), document.pop("compared_at", None)
        assert_same(ours, reference)


def test_one_report_is_written(reports: Path) -> None:
    folders = {path.name for path in reports.iterdir()} - {"scope", "second"}
    assert folders == {f"{world}-{kind}" for world in WORLDS for kind in ("google", "other")}


def test_when_a_process_fails_the_others_end(given: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    tasks = [
        {**given, "world": 3, "out": str(tmp_path / "out"), "fault": "refused"},
        {**given, "world": 2, "out": str(tmp_path / "out"), "fault": "killed"},
        {**given, "world": 2, "out": str(tmp_path / "file" / "out")},
    ]
    started = time.monotonic()
    refused, killed, unwritten = map(run, tasks)
    assert time.monotonic() - started < 60
    assert refused["codes"] == [5, 5, 7]
    assert "not even one row fits" in refused["output"][2]
    assert killed["codes"] == [5, -9]
    assert unwritten["codes"] == [5, 5]
    for output in (*refused["output"][:2], killed["output"][0], unwritten["output"][1]):
        assert "Another process of this run has stopped." in output
        assert len(output.splitlines()) == 3
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def assert_same(ours: Any, reference: Any) -> None:
    if isinstance(ours, dict):
        assert ours.keys() == reference.keys()
        for key, value in ours.items():
            assert_same(value, reference[key])
    elif isinstance(ours, list):
        assert len(ours) == len(reference)
        for item, expected in zip(ours, reference, strict=True):
            assert_same(item, expected)
    else:
        assert ours == (pytest.approx(reference, rel=1e-10, abs=1e-12) if isinstance(reference, float) else reference)


def test_several_processes_collect_the_evidence_that_one_collects(given: dict[str, str], tmp_path: Path) -> None:
    """Also if the last process has no block; only the first one writes."""
    tasks = [
        {**given, "features": rows, "world": world, "out": str(tmp_path / f"{world}-{rows}")}
        for rows, world in ((1600, 1), (1600, 2), (1600, 3), (150, 1), (150, 3))
    ]
    for task in tasks:
        result = run(task)
        assert result["codes"] == [0] * task["world"], result["output"]
    for name in ("evidence.safetensors", "evidence.json", "tokens.json", "report.md"):
        for rows, world in ((1600, 2), (1600, 3), (150, 3)):
            assert (tmp_path / f"{world}-{rows}" / name).read_bytes() == (tmp_path / f"1-{rows}" / name).read_bytes()
