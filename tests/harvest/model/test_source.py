"""Finding and loading a model: names, refusals, hashes, truncation."""

import json
import shutil

import pytest
import torch

from common.errors import DamagedError, DiskError, UsageError
from harvest.memory import weight_bytes
from harvest.model.language_model import load_model
from harvest.model.source import check_layers, find_model


def test_a_local_folder_is_described(model_folder, family):
    source = find_model(str(model_folder))
    assert source.architecture == family
    assert (source.layers, source.width, source.revision) == (4, 64, None)
    assert len(source.weights_hash) == 32


def test_parameters_are_those_of_the_model(model_folder):
    source = find_model(str(model_folder))
    model = load_model(str(model_folder), device="cpu")
    assert source.parameters == sum(p.numel() for p in model.hugging.parameters())
    assert weight_bytes(source, torch.bfloat16) == 2 * source.parameters


def test_the_weights_hash_sees_one_flipped_bit(model_folders, tmp_path):
    copied = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
    before = find_model(str(copied)).weights_hash
    data = bytearray((copied / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (copied / "model.safetensors").write_bytes(data)
    assert find_model(str(copied)).weights_hash != before


def test_a_folder_that_does_not_exist():
    with pytest.raises(UsageError, match="does not exist"):
        find_model("./nowhere")


def test_an_unknown_architecture_is_named(model_folders, tmp_path):
    copied = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(
        json.dumps(config | {"model_type": "mystery", "auto_map": {"AutoModel": "x.y"}})
    )
    with pytest.raises(UsageError, match="mystery"):
        find_model(str(copied))


def test_pickled_weights_are_never_read(model_folders, tmp_path):
    copied = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(DamagedError, match="safetensors"):
        find_model(str(copied))


def test_a_broken_config_is_damage(model_folders, tmp_path):
    copied = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
    (copied / "config.json").write_text("{")
    with pytest.raises(DamagedError, match=r"config\.json"):
        find_model(str(copied))


def test_a_hub_model_without_a_network_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DiskError, match="cannot be reached"):
        find_model("gemma-2-2b")


def test_a_layer_that_the_model_does_not_have_is_refused(model_folder):
    with pytest.raises(UsageError, match="layers 0 to 3"):
        check_layers([4], find_model(str(model_folder)))
