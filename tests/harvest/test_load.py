"""Before a model is loaded: another process at work is refused, and asking leaves nothing behind; what is said then."""

import json

import pytest

from common import disk
from common.device import choose_device
from common.errors import InUseError
from common.progress import Silent
from harvest.config import HarvestSettings
from harvest.load import load_and_measure, refuse_second_process
from harvest.prepare import prepare
from harvest.request import HarvestRequest


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_asking_leaves_nothing_behind_and_a_holder_is_refused(tmp_path):
    request = HarvestRequest("model", {1: tmp_path / "cache"}, rank=3, world=4)
    refuse_second_process(request, 1)
    assert not (tmp_path / "cache").exists()
    with disk.lock(tmp_path / "cache" / "locks" / "part-00003"), pytest.raises(InUseError):
        refuse_second_process(request, 1)
    refuse_second_process(request, 1)


def test_the_device_that_auto_stands_for_is_named(model_folders, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"document {n}: " + "a fox " * 20}) + "\n" for n in range(40)))
    settings = HarvestSettings(dataset=str(text), context=32, train_tokens=256, held_out_tokens=64)
    request = HarvestRequest(str(model_folders["gpt2"]), {1: tmp_path / "c"}, settings=settings, device="auto")
    notes = Notes()
    load_and_measure(prepare(request), 1, notes)
    assert notes.said[0].endswith(f" onto {choose_device('auto')}")
