"""A run goes on in the dtype in which it was begun, whatever its device would choose."""

import json
from pathlib import Path

import pytest

from common.progress import SILENT, Progress
from tests.helpers.progress import Notes
from train import plan
from train.config import LogSettings, TrainSettings
from train.record.begun import begun_dtype
from train.record.checkpoint import CHECKPOINTS_FOLDER
from train.run import train_layer
from transcoder.formats.native import CONFIG_FILE, WEIGHTS_FILE


@pytest.fixture
def run(small_cache: Path, tmp_path: Path) -> Path:
    """A complete run in bfloat16, which no CPU would choose."""
    train(small_cache, tmp_path / "run", compute_dtype="bfloat16")
    return tmp_path / "run"


def train(cache: Path, out: Path, *, fresh: bool = False, progress: Progress = SILENT, **changes: object) -> dict:
    settings = TrainSettings(prefixes=(16, 64), top_k=4, steps=8, batch_rows=64, warmup_steps=1, **changes)
    given = {"settings": settings, "device": "cpu", "fresh": fresh, "log": LogSettings()}
    return train_layer(cache=cache, out=out, progress=progress, **given)


def test_there_is_no_dtype_without_a_run(tmp_path: Path) -> None:
    assert begun_dtype(tmp_path) is None


def test_the_dtype_is_that_of_the_complete_run_or_of_its_newest_checkpoint(run: Path) -> None:
    assert begun_dtype(run) == "bfloat16"
    (run / CONFIG_FILE).unlink()
    assert begun_dtype(run) == "bfloat16"
    (run / CHECKPOINTS_FOLDER / "index.json").write_bytes(b"{")
    assert begun_dtype(run) is None


@pytest.mark.parametrize("content", ["{", "[]", '{"settings": {"compute_dtype": "float8"}}', '{"settings": 3}'])
def test_a_record_that_cannot_be_read_says_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / CONFIG_FILE).write_text(content)
    assert begun_dtype(tmp_path) is None


def test_a_run_goes_on_where_the_device_would_choose_another_dtype(run: Path, small_cache: Path) -> None:
    before = (run / WEIGHTS_FILE).read_bytes()
    (run / CONFIG_FILE).unlink()
    notes = Notes()
    made = train(small_cache, run, progress=notes)
    assert made["settings"]["compute_dtype"] == "bfloat16"
    assert "The run goes on in bfloat16, in which it was begun; here it would be float32." in notes.texts
    assert (run / WEIGHTS_FILE).read_bytes() == before
    assert train(small_cache, run, fresh=True)["settings"]["compute_dtype"] == "float32"


def test_a_plan_is_that_of_the_run_which_goes_on(run: Path, small_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_seconds_a_step", lambda *_, **__: 0.0)
    settings = TrainSettings(prefixes=(16, 64), top_k=4, steps=8, batch_rows=64, warmup_steps=1)
    here, elsewhere = (
        plan.plan_train(cache=small_cache, settings=settings, device="cpu", out=out) for out in (run, run / "new")
    )
    assert here.memory_bytes != elsewhere.memory_bytes
    assert json.loads((run / CONFIG_FILE).read_text())["settings"]["compute_dtype"] == "bfloat16"
