"""Requests from settings; the stages themselves are tested in tests/finetune and tests/evaluate/spliced."""

from pathlib import Path

import pytest

import nestcoder
from common.errors import UsageError
from common.run_layout import CONFIG_FILE
from nestcoder.stages.model import finetune_request


def test_the_result_is_named_after_its_dictionaries(tmp_path: Path) -> None:
    settings = nestcoder.load_settings(overrides=[f"runs={tmp_path}"])
    request = finetune_request(settings, [4, 8], name="main", result=None, device="cpu")
    assert request.result == "main-finetuned"
    assert request.work == tmp_path / "gpt2-stdlib" / "finetune" / "main-finetuned"
    assert list(request.folders) == [4, 8]
    folder = tmp_path / "gpt2-stdlib"
    assert list(request.results().values()) == [
        folder / f"layer0{layer}" / "transcoder" / "main-finetuned" for layer in (4, 8)
    ]
    with pytest.raises(UsageError, match="would replace"):
        finetune_request(settings, [8], name="main", result="main", device="cpu").results()


def test_a_cross_layer_transcoder_has_one_result(tmp_path: Path) -> None:
    settings = nestcoder.load_settings(overrides=[f"runs={tmp_path}"])
    folder = tmp_path / "gpt2-stdlib" / "layers04_08" / "transcoder"
    (folder / "clt").mkdir(parents=True)
    (folder / "clt" / CONFIG_FILE).write_text("{}")
    request = finetune_request(settings, [8, 4], name="clt", result="tuned", device="cpu")
    assert list(request.folders) == [4, 8]
    assert set(request.trained().values()) == {folder / "clt"}
    assert set(request.results().values()) == {folder / "tuned"}
    with pytest.raises(UsageError, match="one cross-layer transcoder"):
        finetune_request(settings, [8], name="clt", result=None, device="cpu")
