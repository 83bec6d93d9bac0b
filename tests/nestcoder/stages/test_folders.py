"""Which layers there are, and what a single process may do."""

from collections.abc import Callable
from pathlib import Path

import pytest

import nestcoder
from common.errors import UsageError
from nestcoder.stages.folders import (
    check_one_process,
    folders_of,
    harvested_layers,
    joined_processes,
    layers_of_model,
    trained_layers,
)


def test_layers_are_those_that_have_a_cache_a_transcoder_or_a_block(
    tiny_run: Path, tiny_settings: Callable[..., nestcoder.PipelineSettings]
) -> None:
    settings = tiny_settings(tiny_run)
    assert folders_of(settings, 8).cache.is_dir()
    assert harvested_layers(settings) == [8]
    assert trained_layers(settings, "main") == [8]
    assert layers_of_model(settings) == list(range(12))


def test_no_layer_at_all_is_a_usage_error(
    tiny_run: Path, tmp_path: Path, tiny_settings: Callable[..., nestcoder.PipelineSettings]
) -> None:
    with pytest.raises(UsageError, match="named 'other'"):
        trained_layers(tiny_settings(tiny_run), "other")
    with pytest.raises(UsageError, match="has been harvested"):
        harvested_layers(tiny_settings(tmp_path))


def test_a_single_process_has_its_device_and_may_do_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined_processes("cpu") as device:
        assert device == "cpu"
    check_one_process("Transcoders are exported")
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"Transcoders are exported by a single process only\."):
        check_one_process("Transcoders are exported")
