"""Preparing a harvest: what is refused before any weight is read, and what the identity contains."""

import json

import pytest

from common.errors import UsageError
from harvest.config import HarvestSettings
from harvest.prepare import prepare
from harvest.request import HarvestRequest


@pytest.fixture
def make_request(model_folders, tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {n}"}) + "\n" for n in range(20)))

    def make(**changes):
        settings = HarvestSettings(dataset=str(path), context=32, **changes)
        return HarvestRequest(str(model_folders["gpt2"]), {1: tmp_path / "c"}, settings=settings, device="cpu")

    return make


def test_newer_settings_are_in_the_identity_only_if_they_differ_from_their_defaults(make_request):
    usual = prepare(make_request()).identity(1)
    assert not {"special_tokens_in_text", "held_out_document_tokens", "bos_policy"} & set(usual)
    assert usual["bos"] == 0
    assert "bad_rows" not in usual["dataset"]
    unusual = prepare(
        make_request(special_tokens_in_text="control", held_out_document_tokens=9, bos="never", bad_rows="skip")
    ).identity(1)
    assert (unusual["special_tokens_in_text"], unusual["held_out_document_tokens"]) == ("control", 9)
    assert unusual["bos"] is None
    assert unusual["dataset"]["bad_rows"] == "skip"


def test_messages_need_a_chat_template(make_request):
    with pytest.raises(UsageError, match="no chat template"):
        prepare(make_request(messages_column="talk"))
