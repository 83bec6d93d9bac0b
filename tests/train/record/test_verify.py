"""Every file that a training leaves can be verified, and every flip in it is found."""

import json
from pathlib import Path

import pytest

from common.progress import Silent
from train.config import LogSettings, TrainSettings
from train.record.verify import verify_run
from train.run import train_layer


@pytest.fixture(scope="module")
def finished(small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    settings = TrainSettings(
        prefixes=(8, 16), top_k=2, steps=4, batch_rows=64, checkpoint_every=2, log_every=1, sweep=({"name": "twin"},)
    )
    train_layer(
        cache=small_cache, out=out, settings=settings, device="cpu", fresh=False, progress=Silent(), log=LogSettings()
    )
    return out


def test_a_finished_run_has_no_fault(finished: Path) -> None:
    assert verify_run(finished) == []


def test_a_folder_without_a_training_is_named(tmp_path: Path) -> None:
    assert verify_run(tmp_path) == [f"{tmp_path}: there is no training here."]


def test_a_flip_anywhere_is_found_and_names_its_file(finished: Path) -> None:
    """Of config.json, all that a reader of the transcoder goes by; of the other files, any byte."""
    files = [path for path in finished.rglob("*") if path.is_file() and path.name not in ("config.json", ".lock")]
    assert {path.name for path in files} >= {"metrics.jsonl", "transcoder.safetensors", "index.json"}
    assert [path for path in files if path.parent.name == "twin"]
    for path in files:
        whole = path.read_bytes()
        for place in (0, len(whole) // 3, len(whole) - 2):
            data = bytearray(whole)
            data[place] ^= 1
            path.write_bytes(data)
            faults = verify_run(finished)
            assert [fault for fault in faults if str(path.parent) in fault], (path, place)
        path.write_bytes(whole)
    assert verify_run(finished) == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/index.json", "checkpoints/step-00000004.json"])
def test_a_cut_or_missing_file_is_found(finished: Path, name: str) -> None:
    path = finished / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert [fault for fault in verify_run(finished) if fault.startswith(str(path))]
    path.unlink()
    assert verify_run(finished)
    path.write_bytes(whole)


def test_a_log_that_goes_on_behind_the_end_is_found(finished: Path) -> None:
    path = finished / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"no json\n")
    assert len(verify_run(finished)) == 2
    path.write_bytes(whole)


def test_a_config_that_says_otherwise_than_was_trained_is_found(finished: Path) -> None:
    path = finished / "config.json"
    whole = path.read_text()
    config = json.loads(whole)
    path.write_text(json.dumps(config | {"top_k": 3}))
    assert [fault for fault in verify_run(finished) if fault.startswith(str(path))]
    path.write_text(whole)
