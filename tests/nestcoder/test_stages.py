"""The stages as functions: the same folders and results as the commands', and nothing done twice."""

from collections.abc import Callable
from pathlib import Path

import pytest

import nestcoder
from common.errors import UsageError
from nestcoder.stages import folders_of, trained_layers


def test_what_is_finished_is_left_alone(
    tiny_run: Path, tiny_settings: Callable[..., nestcoder.PipelineSettings]
) -> None:
    settings = tiny_settings(tiny_run)
    folders = folders_of(settings, 8)
    before = {path: path.stat().st_mtime_ns for path in folders.layer_folder.rglob("*.safetensors")}
    harvested = nestcoder.run_harvest(settings, [8], device="cpu")[8]
    assert harvested["cache"] == str(folders.cache)
    assert harvested["rows"] == 0
    config = nestcoder.run_train(settings, [8], device="cpu")[8]
    assert config["dict_size"] == 64
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_layers_that_are_not_trained_are_refused(
    tiny_run: Path, tiny_settings: Callable[..., nestcoder.PipelineSettings]
) -> None:
    settings = tiny_settings(tiny_run)
    assert trained_layers(settings, "main") == [8]
    with pytest.raises(UsageError, match="named 'other'"):
        nestcoder.run_evaluate(settings, name="other")
