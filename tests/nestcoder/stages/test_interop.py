"""What an export is asked for, and what is refused before anything is read or written."""

from collections.abc import Callable
from pathlib import Path

import pytest

import nestcoder
from common.errors import UsageError
from nestcoder.stages.folders import folders_of
from nestcoder.stages.interop import export_request, layer_sources


def test_each_format_is_written_once(tmp_path: Path) -> None:
    request = export_request(
        to=["saelens", "sparsify", "saelens"], out=tmp_path, prefix=16, source_view="mlp_in", fresh=True
    )
    assert request.to == ("saelens", "sparsify")
    assert (request.wish.prefix, request.wish.source_view, request.fresh) == (16, "mlp_in", True)


def test_exports_are_of_trained_transcoders_and_by_one_process(
    tiny_run: Path, tiny_settings: Callable[..., nestcoder.PipelineSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(tiny_run)
    (source,) = layer_sources(settings, [8], "main")
    folders = folders_of(settings, 8)
    assert (source.layer, source.cache, source.transcoder) == (8, folders.cache, folders.transcoder("main"))
    with pytest.raises(UsageError, match="no trained transcoder here"):
        layer_sources(settings, [8], "other")
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="exported and imported by a single process"):
        layer_sources(settings, [8], "main")
    with pytest.raises(UsageError, match="exported and imported by a single process"):
        nestcoder.run_import(settings, "nothing", [8], name="theirs")
