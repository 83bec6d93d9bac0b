"""Folders of a run, and names that may not leave them."""

from pathlib import Path

import pytest

from common.errors import UsageError
from nestcoder.runs import known_layers, model_folder_name, run_folders


def test_folders_are_where_the_readme_says() -> None:
    folders = run_folders(Path("runs"), "models/gpt2-stdlib/", 8)
    assert folders.cache == Path("runs/gpt2-stdlib/layer08/cache")
    assert folders.transcoder("main") == Path("runs/gpt2-stdlib/layer08/transcoder/main")
    assert folders.report("main") == Path("runs/gpt2-stdlib/layer08/report/main")
    assert folders.probe("first-letter") == Path("runs/gpt2-stdlib/layer08/probe/first-letter")
    assert run_folders(Path("r"), "google/gemma-2-2b", 12).cache == Path("r/gemma-2-2b/layer12/cache")


@pytest.mark.parametrize("name", ["..", "a/../..", "", "a b", "-x", "a\n"])
def test_names_that_could_leave_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        run_folders(Path("runs"), "gpt2", 1).transcoder(name)


@pytest.mark.parametrize("model", ["..", "/", "a/..", "mod el"])
def test_models_that_name_no_folder_are_refused(model: str) -> None:
    with pytest.raises(UsageError):
        model_folder_name(model)


def test_layers_and_transcoders_on_disk_are_found(tmp_path: Path) -> None:
    for layer in (10, 2):
        folder = run_folders(tmp_path, "gpt2", layer).transcoder("main")
        folder.mkdir(parents=True)
        (folder / "transcoder.safetensors").touch()
    run_folders(tmp_path, "gpt2", 2).transcoder("unfinished").mkdir()
    assert known_layers(tmp_path, "gpt2") == [2, 10]
    assert run_folders(tmp_path, "gpt2", 2).trained() == ["main"]
    assert known_layers(tmp_path, "gemma") == []
