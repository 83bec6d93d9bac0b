"""A model's files by their headers: pointers, cut and missing files, and adapters: one sentence each."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from common.errors import DamagedError, UsageError
from harvest.model.source import find_model
from harvest.model.weight_files import check_folder, stored_weights


def test_sizes_come_from_the_header(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(())}, path)
    assert dict(stored_weights(path)) == {"a": 12, "b": 1}


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git-lfs pointer"),
        (lambda data: data[:-5], "5 bytes early"),
        (lambda data: data[:20], "header of the weights cannot be read"),
        (lambda data: data[:8] + b"x" * (len(data) - 8), "header of the weights cannot be read"),
        (lambda _: b"", "header of the weights cannot be read"),
        (lambda _: b"\xff" * 64, "header of the weights cannot be read"),
    ],
)
def test_damaged_weights_are_one_sentence(model_folders, tmp_path, damage, problem):
    folder = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedError, match=problem) as raised:
        find_model(str(folder)).parameters  # noqa: B018
    assert raised.value.where == str(path)


@pytest.mark.parametrize("full", [True, False])
def test_an_adapter_in_the_folder_is_refused_with_the_remedy(model_folders, tmp_path, full):
    folder = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
    (folder / "adapter_config.json").write_text("{}")
    save_file({}, folder / "adapter_model.safetensors")
    if not full:
        (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"adapter_config\.json, adapter_model\.safetensors") as raised:
        check_folder(folder)
    assert "merge_and_unload" in raised.value.remedy


def test_a_missing_file_of_the_index_is_named(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(DamagedError, match="model-00002-of-00002"):
        check_folder(tmp_path)
