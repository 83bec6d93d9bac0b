"""The record, and its mirror at Weights & Biases: offline, broken, and never containing a key."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from common import disk
from common.errors import DiskError
from common.sealed.tensors import FileSeal
from tests.helpers.progress import Notes
from tests.helpers.training import train
from train.config import LogSettings, TrainSettings
from train.record.log import MetricsLog, WandbMirror, read_log

KEY = "0123456789abcdef0123456789abcdef01234567"

NO_LOG = FileSeal(0, "")


def test_lines_are_there_at_once_and_cut_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    notes = Notes()
    log = MetricsLog(path, seal=NO_LOG, step=0, progress=notes)
    log.add({"step": 1, "fvu": 0.5})
    kept = log.seal
    log.add({"step": 2, "fvu": 0.4})
    assert [line["step"] for line in read_log(path)] == [1, 2]
    with path.open("ab") as file:
        file.write(b'{"step": 3, "fv')
    assert [line["step"] for line in read_log(path)] == [1, 2]
    again = MetricsLog(path, seal=kept, step=1, progress=notes)
    again.add({"step": 2, "fvu": 0.4})
    assert [line["step"] for line in read_log(path)] == [1, 2]
    assert again.seal == FileSeal(path.stat().st_size, xxhash.xxh3_128_hexdigest(path.read_bytes()))
    assert notes.texts == []


@pytest.mark.parametrize(
    ("damage", "steps"),
    [
        (lambda data: data[:-20], [1, 2]),
        (lambda data: data.replace(b"0.5", b"0.4"), [1, 2, 2]),
        (lambda data: b"", [2]),
        (lambda data: data[:10] + b"\n" + data[11:], None),
    ],
)
def test_a_log_that_was_cut_or_changed_is_noted_and_marked(
    tmp_path: Path, damage: Callable[[bytes], bytes], steps: list[int] | None
) -> None:
    """It is never padded, complete lines are kept, and the training goes on after a line that says so."""
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, seal=NO_LOG, step=0, progress=Notes())
    for step in (1, 2):
        log.add({"step": step, "batch_fvu": 0.5})
    path.write_bytes(damage(path.read_bytes()))
    notes = Notes()
    MetricsLog(path, seal=log.seal, step=2, progress=notes)
    assert len(notes.texts) == 1
    assert "the log was cut or changed after the checkpoint of step 2" in notes.texts[0]
    assert path.read_bytes().endswith(b'{"step": 2, "log_was_damaged": true}\n')
    if steps:
        assert [line["step"] for line in read_log(path)] == steps


def test_a_seal_of_an_earlier_release_checks_only_the_length(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n')
    notes = Notes()
    MetricsLog(path, seal=FileSeal(12, ""), step=1, progress=notes)
    assert [line["step"] for line in read_log(path)] == [1]
    assert notes.texts == []


def test_logs_of_earlier_releases_are_read_under_today_s_names(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "fvu": 0.5, "fvu_per_prefix": [0.7, 0.5], "l0": 4.0}\n')
    assert read_log(path) == [{"step": 1, "batch_fvu": 0.5, "batch_fvu_per_prefix": [0.7, 0.5], "l0": 4.0}]


def test_lines_that_the_disk_refuses_come_later_and_stop_no_step(tmp_path: Path) -> None:
    """For a while there is a folder at the path of the file."""
    path = tmp_path / "metrics.jsonl"
    path.mkdir()
    log = MetricsLog(path, seal=NO_LOG, step=0, progress=Notes())
    log.add({"step": 1})
    with pytest.raises(DiskError, match="The training log cannot be written"):
        log.flush()
    path.rmdir()
    log.add({"step": 2})
    log.flush()
    assert [line["step"] for line in read_log(path)] == [1, 2]


def test_a_checkpoint_s_log_is_on_the_disk_before_the_index_names_it(
    small_cache: Path, tmp_path: Path, quick: TrainSettings
) -> None:
    order: list[str] = []

    def note(when: str, operation: str, path: Path) -> None:
        if when == "after" and (path.name, operation) in (("metrics.jsonl", "flush"), ("index.json", "rename")):
            order.append(path.name)

    with disk.watch(note):
        train(small_cache, tmp_path / "run", quick, Notes())
    assert order == ["metrics.jsonl", "index.json"] * 4


def weights_of(out: Path) -> bytes:
    return (out / "transcoder.safetensors").read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_offline_wandb_mirrors_and_changes_nothing(
    small_cache: Path, tmp_path: Path, quick: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    notes = Notes()
    train(small_cache, tmp_path / "plain", quick, notes)
    train(small_cache, tmp_path / "mirrored", quick, notes, log=LogSettings(wandb=True))
    assert notes.texts == []
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
    assert b"batch_fvu_per_prefix" in record.read_bytes()
    assert KEY.encode() not in record.read_bytes()


def test_a_mirror_that_fails_ends_with_a_note(tmp_path: Path) -> None:
    """Its folder cannot be made: there is a file at its path."""
    (tmp_path / "run").write_text("in the way")
    notes = Notes()
    mirror = WandbMirror(
        LogSettings(wandb=True, wandb_mode="offline"), folder=tmp_path / "run", config={}, progress=notes
    )
    mirror.add({"step": 1, "fvu": 0.5})
    mirror.close()


class Broken:
    """A run that lost its connection."""

    def log(self, values: dict[str, Any], *, step: int) -> None:
        raise ConnectionError(f"no route to {KEY}")

    def finish(self) -> None:
        raise AssertionError("a mirror that is off is not closed")


def test_a_failure_while_mirroring_is_noted_once_without_its_text(tmp_path: Path) -> None:
    notes = Notes()
    mirror = WandbMirror(LogSettings(), folder=tmp_path, config={}, progress=notes)
    mirror._run = Broken()
    mirror.add({"step": 1})
    mirror.add({"step": 2})
    mirror.close()
    assert notes.texts == [
        "Weights & Biases was switched off after an error (ConnectionError). metrics.jsonl still gets every metric."
    ]
