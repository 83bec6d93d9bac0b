"""Requests from settings; the stages themselves are tested in tests/finetune and tests/evaluate/spliced."""

from pathlib import Path

import pytest

import nestcoder
from common.errors import UsageError
from nestcoder.model_stages import finetune_request


def test_the_result_is_named_after_what_it_is_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = nestcoder.load_settings(overrides=[f"runs={tmp_path}"])
    request = finetune_request(settings, [4, 8], name="main", result=None, device="cpu")
    assert request.result == "main-finetuned"
    assert request.work == tmp_path / "gpt2-stdlib" / "finetune" / "main-finetuned"
    assert list(request.folders) == [4, 8]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(UsageError, match="One process fine-tunes"):
        finetune_request(settings, [8], name="main", result=None, device="cpu")
