"""The model for a harvest: cut to the blocks that are needed, its own loss measured if all of it fits."""

import json
import sys
from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from cache.format.manifest import MANIFEST
from common.device import choose_device
from common.errors import UsageError
from common.progress import Stopwatch
from harvest.config import HarvestSettings
from harvest.load import hash_weights, load_and_measure
from harvest.model.language_model import boot_bridge
from harvest.model.source import find_model
from harvest.prepare import prepare
from harvest.request import HarvestRequest
from tests.helpers.progress import Notes


@pytest.fixture
def prepared(model_folder, tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {n} of some length"}) + "\n" for n in range(40)))
    settings = HarvestSettings(dataset=str(path), context=32, train_tokens=600, held_out_tokens=100)
    return prepare(HarvestRequest(str(model_folder), {1: tmp_path / "c"}, settings=settings, device="cpu"))


def test_the_model_is_cut_after_the_last_layer_and_its_own_loss_is_measured_before(prepared):
    notes = Notes()
    model, own_loss = load_and_measure(prepared, 1, notes, Stopwatch())
    blocks = getattr(model.hugging, "transformer", None)
    assert len(blocks.h if blocks is not None else model.hugging.model.layers) == 2
    assert own_loss is not None
    assert own_loss["unigram"] > 0
    assert notes.texts[0].endswith(" onto cpu.")


def test_if_the_whole_model_does_not_fit_the_loss_is_left_out_with_a_note(prepared, monkeypatch):
    monkeypatch.setattr("harvest.load.has_room_for_all", lambda *_, **__: False)
    notes = Notes()
    _, own_loss = load_and_measure(prepared, 1, notes, Stopwatch())
    assert own_loss is None
    assert "no room" in notes.texts[-1]


def test_an_error_of_the_text_that_is_read_meanwhile_arrives_as_it_is(prepared, monkeypatch):
    def refuse(self, count):
        raise UsageError("no text", where="here")

    monkeypatch.setattr(type(prepared), "first_contexts", refuse)
    with pytest.raises(UsageError, match="no text"):
        load_and_measure(prepared, 1, Notes(), Stopwatch())


def test_a_gpu_that_does_not_start_is_noticed_where_it_is_needed(prepared, monkeypatch):
    def fail(*_):
        raise RuntimeError("no GPU")

    monkeypatch.setattr("harvest.load.wake", fail)
    hash_weights(prepared, Notes())


def test_the_device_that_auto_stands_for_is_named(prepared):
    notes = Notes()
    load_and_measure(prepare(replace(prepared.request, device="auto")), 1, notes, Stopwatch())
    assert notes.texts[0].endswith(f" onto {choose_device('auto')}.")


def test_the_tokenizer_is_read_only_for_the_request(prepared, monkeypatch):
    monkeypatch.delattr(AutoTokenizer, "from_pretrained")
    model, _ = load_and_measure(prepared, 1, Notes(), Stopwatch())
    boot_bridge(model)
    assert model.tokenizer is prepared.tokenizer


def test_the_weights_are_hashed_while_the_library_of_the_proof_is_imported(prepared, tmp_path):
    notes = Notes()
    hash_weights(prepared, notes)
    assert notes.texts == [f"Hashing the weights of {prepared.source.name}."]
    assert vars(prepared.source)["weights_hash"] == find_model(prepared.source.name).weights_hash
    assert "transformer_lens.model_bridge" in sys.modules
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / MANIFEST).write_text("{}")
    hash_weights(prepared, notes)
    assert len(notes.texts) == 1
