"""Folders of a run, and names that would lead out of them."""

from pathlib import Path

import pytest

from common import disk
from common.errors import UsageError
from common.run_layout import (
    CONFIG_FILE,
    RunFolders,
    check_of_one_layer,
    dictionaries_of_layer,
    joint_folders,
    known_layers,
    layers_of,
    model_folder_name,
    remote_name,
    run_folders,
)


def test_folders_are_where_the_readme_says() -> None:
    folders = run_folders(Path("runs"), "models/gpt2-stdlib/", 8)
    assert folders.cache == Path("runs/gpt2-stdlib/layer08/cache")
    assert folders.transcoder("main") == Path("runs/gpt2-stdlib/layer08/transcoder/main")
    assert folders.report("main") == Path("runs/gpt2-stdlib/layer08/report/main")
    assert folders.probe("first-letter") == Path("runs/gpt2-stdlib/layer08/probe/first-letter")
    assert run_folders(Path("r"), "google/gemma-2-2b", 12).cache == Path("r/gemma-2-2b/layer12/cache")


@pytest.mark.parametrize("name", ["..", "a/../..", "", "a b", "-x", "a\n"])
def test_names_that_lead_out_of_the_folder_are_refused(name: str) -> None:
    with pytest.raises(UsageError):
        run_folders(Path("runs"), "gpt2", 1).transcoder(name)


@pytest.mark.parametrize("model", ["", "/", "absent/..", "mod el", "." * 300])
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


def test_every_path_to_a_folder_gives_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my model").mkdir()
    snapshot = (
        tmp_path / "hub" / "models--google--gemma-2-2b" / "snapshots" / "c5ebcd40d208330abc697524c919956e692655cf"
    )
    snapshot.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "my model")
    assert {model_folder_name(str(path)) for path in (Path(), Path("../my model"), Path.cwd())} == {"my-model"}
    assert model_folder_name("..") == tmp_path.name
    assert model_folder_name(str(snapshot)) == "gemma-2-2b"


def test_paths_beside_a_cache_and_at_a_remote_url(tmp_path: Path) -> None:
    folders = run_folders(tmp_path, "gpt2", 8)
    assert RunFolders.of_cache(folders.cache) == folders
    assert remote_name(folders.cache) == "gpt2/layer08/cache"


def test_a_cross_layer_transcoder_is_distinguished_from_a_set_of_its_name(tmp_path: Path) -> None:
    def train(folders: RunFolders) -> None:
        folders.transcoder("clt").mkdir(parents=True)
        (folders.transcoder("clt") / CONFIG_FILE).write_text("{}")

    check_of_one_layer(tmp_path, "gpt2", [2], "clt")
    train(joint_folders(tmp_path, "gpt2", [2, 3]))
    check_of_one_layer(tmp_path, "gpt2", [2], "another")
    for layers in ([2], [2, 3], []):
        with pytest.raises(UsageError, match="'clt' is one cross-layer transcoder") as caught:
            check_of_one_layer(tmp_path, "gpt2", layers, "clt")
        assert str(caught.value.where).endswith("layers02-03/transcoder/clt")
    train(run_folders(tmp_path, "gpt2", 2))
    check_of_one_layer(tmp_path, "gpt2", [2], "clt")
    check_of_one_layer(tmp_path, "gpt2", [], "clt")
    with pytest.raises(UsageError, match="one cross-layer"):
        check_of_one_layer(tmp_path, "gpt2", [2, 3], "clt")


@pytest.mark.parametrize("layers", [[3], [0, 1, 2], [4, 8, 12], [9, 100, 101]])
def test_the_layers_of_a_folder_are_those_that_it_was_named_by(layers: list[int]) -> None:
    assert layers_of(joint_folders(Path("runs"), "gpt2", layers).layer_folder) == layers


@pytest.mark.parametrize("name", ["layer08", "layers", "layers5-3", "layers05-03", "layers04_", "layers04-05_06", "x"])
def test_other_folders_are_of_no_several_layers(name: str) -> None:
    assert layers_of(Path("runs") / name) is None


def test_a_layers_dictionaries_are_its_own_and_those_of_several(tmp_path: Path) -> None:
    folders = [run_folders(tmp_path, "gpt2", 5), *(joint_folders(tmp_path, "gpt2", all_) for all_ in ([4, 5], [4, 6]))]
    for folder in folders:
        disk.write_file(folder.transcoder("main") / CONFIG_FILE, b"")
    assert dictionaries_of_layer(tmp_path, "gpt2", 5, "main") == [
        folders[0].transcoder("main"),
        folders[1].transcoder("main"),
    ]
    assert dictionaries_of_layer(tmp_path, "gpt2", 6, "main") == [folders[2].transcoder("main")]
    assert not dictionaries_of_layer(tmp_path, "gpt2", 5, "other")
