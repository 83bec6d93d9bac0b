"""The request that follows from the settings; a finished harvest is not changed."""

from collections.abc import Callable
from pathlib import Path

import pytest

import nestcoder
from nestcoder.stages.folders import folders_of
from nestcoder.stages.harvest import harvest_request


def test_a_request_follows_from_the_settings_and_the_rank(
    tmp_path: Path, tiny_settings: Callable[..., nestcoder.PipelineSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(tmp_path)
    request = harvest_request(settings, [8, 4], "cpu")
    assert request.folders == {8: folders_of(settings, 8).cache, 4: folders_of(settings, 4).cache}
    assert (request.settings, request.cache) == (settings.harvest, settings.cache)
    assert (request.rank, request.world, request.device) == (0, 1, "cpu")
    for name, value in (("WORLD_SIZE", "3"), ("RANK", "2"), ("LOCAL_RANK", "2")):
        monkeypatch.setenv(name, value)
    request = harvest_request(settings, [8], "cpu")
    assert (request.rank, request.world) == (2, 3)


def test_what_is_finished_is_left_alone(
    tiny_run: Path, tiny_settings: Callable[..., nestcoder.PipelineSettings]
) -> None:
    settings = tiny_settings(tiny_run)
    cache = folders_of(settings, 8).cache
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    harvested = nestcoder.run_harvest(settings, [8], device="cpu")[8]
    assert harvested["cache"] == str(cache)
    assert harvested["rows"] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
