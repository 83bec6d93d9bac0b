"""Every file that a training leaves can be verified, and every flip in it is found."""

import json
from pathlib import Path

import pytest

from tests.helpers.training import train
from train.config import TrainSettings
from train.record.verify import verify_run


@pytest.fixture(scope="module")
def finished(small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    settings = TrainSettings(
        prefixes=(8, 16), top_k=2, steps=4, batch_rows=64, checkpoint_every=2, log_every=1, sweep=({"name": "twin"},)
    )
    train(small_cache, out, settings)
    return out


def test_a_finished_run_has_no_fault(finished: Path) -> None:
    assert verify_run(finished) == []


def test_a_folder_without_a_training_is_named(tmp_path: Path) -> None:
    assert verify_run(tmp_path) == [f"{tmp_path}: there is no training run here."]


def test_a_flip_anywhere_is_found_and_names_its_file(finished: Path) -> None:
    """In config.json, all that a reader of the transcoder uses; in the other files, any byte."""
    files = [path for path in finished.rglob("*") if path.is_file() and path.name not in ("config.json", ".lock")]
    assert {path.name for path in files} >= {"metrics.jsonl", "transcoder.safetensors", "index.json"}
    assert [path for path in files if path.parent.name == "twin"]
    for path in files:
        sound = path.read_bytes()
        for offset in (0, len(sound) // 3, len(sound) - 2):
            data = bytearray(sound)
            data[offset] ^= 1
            path.write_bytes(data)
            faults = verify_run(finished)
            assert [fault for fault in faults if str(path.parent) in fault], (path, offset)
        path.write_bytes(sound)
    assert verify_run(finished) == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/index.json", "checkpoints/step-00000004.json"])
def test_a_cut_or_missing_file_is_found(finished: Path, name: str) -> None:
    path = finished / name
    sound = path.read_bytes()
    path.write_bytes(sound[:-3])
    assert [fault for fault in verify_run(finished) if fault.startswith(str(path))]
    path.unlink()
    assert verify_run(finished)
    path.write_bytes(sound)


def test_lines_after_the_end_of_the_log_are_found(finished: Path) -> None:
    path = finished / "metrics.jsonl"
    sound = path.read_bytes()
    path.write_bytes(sound + b"no json\n")
    assert len(verify_run(finished)) == 2
    path.write_bytes(sound)


def test_a_config_that_differs_from_the_training_is_found(finished: Path) -> None:
    path = finished / "config.json"
    sound = path.read_text()
    config = json.loads(sound)
    path.write_text(json.dumps(config | {"top_k": 3}))
    assert [fault for fault in verify_run(finished) if fault.startswith(str(path))]
    path.write_text(sound)
