"""The record, and its mirror at Weights & Biases: offline, broken, and never holding a key."""

import time
from pathlib import Path
from typing import Any

import pytest

from common.progress import Silent
from train.config import LogSettings, TrainSettings
from train.log import MetricsLog, WandbMirror, read_log
from train.run import train_layer

KEY = "0123456789abcdef0123456789abcdef01234567"


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_lines_are_there_at_once_and_cut_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, size_bytes=0)
    log.add({"step": 1, "fvu": 0.5})
    kept = log.size_bytes
    log.add({"step": 2, "fvu": 0.4})
    assert [line["step"] for line in read_log(path)] == [1, 2]
    with path.open("ab") as file:
        file.write(b'{"step": 3, "fv')
    assert [line["step"] for line in read_log(path)] == [1, 2]
    again = MetricsLog(path, size_bytes=kept)
    again.add({"step": 2, "fvu": 0.4})
    assert [line["step"] for line in read_log(path)] == [1, 2]
    assert again.size_bytes == path.stat().st_size


def test_a_log_that_lost_bytes_is_begun_where_it_ends(tmp_path: Path) -> None:
    """A log shorter than the checkpoint says is never padded with zeros."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n')
    log = MetricsLog(path, size_bytes=500)
    log.add({"step": 2})
    assert [line["step"] for line in read_log(path)] == [1, 2]


def train(cache: Path, out: Path, settings: TrainSettings, log: LogSettings, notes: Notes) -> dict[str, Any]:
    return train_layer(cache=cache, out=out, settings=settings, device="cpu", fresh=False, progress=notes, log=log)


def weights_of(out: Path) -> bytes:
    return (out / "transcoder.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_offline_wandb_mirrors_and_changes_nothing(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    notes = Notes()
    train(small_cache, tmp_path / "plain", quick, LogSettings(), notes)
    train(small_cache, tmp_path / "mirrored", quick, LogSettings(wandb=True), notes)
    assert notes.said == []
    assert weights_of(tmp_path / "mirrored") == weights_of(tmp_path / "plain")
    files = list((tmp_path / "mirrored" / "wandb").rglob("*"))
    assert [path for path in files if path.suffix == ".wandb"]
    stored = b"".join(path.read_bytes() for path in (tmp_path / "mirrored").rglob("*") if path.is_file())
    assert KEY.encode() not in stored
    record = next(path for path in files if path.suffix == ".wandb")
    deadline = time.monotonic() + 30
    while b"held_out_fvu" not in record.read_bytes():
        assert time.monotonic() < deadline, "wandb's own process writes the record, at its leisure"
        time.sleep(0.1)
    assert b"fvu_per_prefix" in record.read_bytes()
    assert KEY.encode() not in record.read_bytes()


def test_a_mirror_that_fails_ends_with_a_note(tmp_path: Path) -> None:
    """Its folder cannot be made: a file is in the way."""
    (tmp_path / "run").write_text("in the way")
    notes = Notes()
    mirror = WandbMirror(
        LogSettings(wandb=True, wandb_mode="offline"), folder=tmp_path / "run", config={}, progress=notes
    )
    mirror.add({"step": 1, "fvu": 0.5})
    mirror.close()


class Broken:
    """A run whose connection is gone."""

    def log(self, values: dict[str, Any], *, step: int) -> None:
        raise ConnectionError(f"no route to {KEY}")

    def finish(self) -> None:
        raise AssertionError("a mirror that is off is not closed")


def test_a_failure_while_mirroring_is_said_once_without_its_text(tmp_path: Path) -> None:
    notes = Notes()
    mirror = WandbMirror(LogSettings(), folder=tmp_path, config={}, progress=notes)
    mirror._run = Broken()
    mirror.add({"step": 1})
    mirror.add({"step": 2})
    mirror.close()
    assert notes.said == ["Weights & Biases is off: ConnectionError. metrics.jsonl has every figure."]
