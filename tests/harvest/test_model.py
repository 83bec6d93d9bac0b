"""Finding and loading a model: names, refusals, hashes, truncation."""

import json
import shutil

import pytest
import torch

from common.device import choose_device
from common.errors import DamagedError, DiskError, MismatchError, UsageError
from harvest.memory import token_bytes, weight_bytes
from harvest.model.language_model import choose_dtype, load_model
from harvest.model.source import check_layers, find_model
from harvest.model.tokenizer import load_tokenizer


def test_a_local_folder_is_described(model_folder, family):
    where = find_model(str(model_folder))
    assert where.architecture == family
    assert (where.layers, where.width, where.revision) == (4, 64, None)
    assert len(where.weights_hash) == 32


def test_parameters_are_those_of_the_model(model_folder):
    where = find_model(str(model_folder))
    model = load_model(str(model_folder), device="cpu")
    assert where.parameters == sum(p.numel() for p in model.hugging.parameters())
    assert weight_bytes(where, torch.bfloat16) == 2 * where.parameters


def test_only_the_blocks_asked_for_are_loaded(model_folder):
    whole, part = load_model(str(model_folder), device="cpu"), load_model(str(model_folder), device="cpu", last_layer=1)
    assert (whole.last_layer, part.last_layer) == (3, 1)
    sizes = [sum(p.numel() for p in m.hugging.parameters()) for m in (whole, part)]
    assert sizes[1] < sizes[0]
    assert weight_bytes(part.where, torch.float32, layers=2) == pytest.approx(4 * sizes[1], rel=0.1)


def test_nothing_is_printed_while_loading(model_folder, capfd):
    load_model(str(model_folder), device="cpu", last_layer=1)
    assert capfd.readouterr() == ("", "")


def test_the_weights_hash_sees_one_flipped_bit(model_folders, tmp_path):
    copied = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
    before = find_model(str(copied)).weights_hash
    data = bytearray((copied / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (copied / "model.safetensors").write_bytes(data)
    assert find_model(str(copied)).weights_hash != before


def test_bos_and_special_tokens(model_folders):
    gpt2, gemma2 = (load_tokenizer(find_model(str(model_folders[name]))) for name in ("gpt2", "gemma2"))
    assert (gpt2.bos, gpt2.special_ids) == (0, (0,))
    assert (gemma2.bos, gemma2.special_ids) == (2, (0, 1, 2))
    assert gpt2.hash != gemma2.hash


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


def test_a_tokenizer_larger_than_the_embedding(model_folders, tmp_path):
    copied = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(MismatchError, match="257 entries"):
        load_tokenizer(find_model(str(copied)))


def test_a_hub_model_without_a_network_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DiskError, match="cannot be reached"):
        find_model("gemma-2-2b")


def test_a_layer_beyond_the_model(model_folder):
    with pytest.raises(UsageError, match="layers 0 to 3"):
        check_layers([4], find_model(str(model_folder)))


def test_devices_and_dtypes():
    assert choose_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match="cuda:99"):
        choose_device("cuda:99")
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    assert choose_dtype("auto", torch.device("cuda", 0)) == torch.bfloat16
    assert choose_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16


def test_eager_attention_is_counted(model_folder):
    where = find_model(str(model_folder))
    lean = token_bytes(where, torch.float32, context=64, sites=2, eager=False)
    assert token_bytes(where, torch.float32, context=64, sites=2, eager=True) == lean + 3 * 4 * 64 * 4
