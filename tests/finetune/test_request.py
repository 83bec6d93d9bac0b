"""The folders that a request reads and writes: one a layer, or one for a dictionary of several."""

from dataclasses import replace
from pathlib import Path

import pytest

from cache.config import CacheSettings
from common.errors import UsageError
from common.run_layout import RunFolders
from evaluate.config import EvaluateSettings
from finetune.config import FinetuneSettings
from finetune.request import FinetuneRequest


def test_a_dictionary_of_several_layers_has_one_folder(tmp_path: Path) -> None:
    request = FinetuneRequest(
        folders={layer: RunFolders(tmp_path / f"layer0{layer}") for layer in (4, 8)},
        name="main",
        result="better",
        work=tmp_path,
        lm="tiny",
        device="cpu",
        settings=FinetuneSettings(),
        evaluate=EvaluateSettings(),
        cache=CacheSettings(),
    )
    assert request.trained()[8] == tmp_path / "layer08" / "transcoder" / "main"
    assert request.results()[4] == tmp_path / "layer04" / "transcoder" / "better"
    joint = replace(request, joint=RunFolders(tmp_path / "layers04_08"))
    assert set(joint.trained().values()) == {tmp_path / "layers04_08" / "transcoder" / "main"}
    assert list(joint.results()) == [4, 8]
    with pytest.raises(UsageError, match="would replace"):
        replace(joint, result="main").results()
