"""Weights that do not fill the model are refused with the names of the tensors; tensors it does not use are noted."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from common.errors import DamagedError, MismatchError, UsageError
from harvest.model.fit import check_fit
from harvest.model.language_model import load_model
from harvest.model.source import find_model


@pytest.fixture
def change(model_folders, tmp_path):
    """A copy of the tiny GPT-2 whose tensors are renamed (None: dropped), and whose configuration is changed."""

    def make(rename=lambda name: name, *, more=None, **config):
        folder = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
        weights = load_file(folder / "model.safetensors")
        renamed = {rename(name): tensor for name, tensor in weights.items() if rename(name)}
        save_file(renamed | (more or {}), folder / "model.safetensors", metadata={"format": "pt"})
        described = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(described | config))
        return str(folder)

    return make


@pytest.mark.parametrize("last_layer", [None, 1])
@pytest.mark.parametrize(
    ("rename", "named", "remedy"),
    [
        (lambda name: f"_orig_mod.{name}", r"_orig_mod\.", "_orig_mod"),
        (lambda name: f"base_model.model.{name}", r"base_model\.model\.", "merge_and_unload"),
        (lambda name: name.replace("c_fc.weight", "c_fc.base_layer.weight"), r"h\.0\.mlp\.c_fc\.weight", "merge"),
        (lambda name: None if ".h.1.mlp" in name else name, r"4 of its tensors .*transformer\.h\.1\.mlp", "block 1"),
    ],
)
def test_tensors_that_do_not_fill_the_model_are_named(change, rename, named, remedy, last_layer):
    with pytest.raises(MismatchError, match=named) as refused:
        load_model(change(rename), device="cpu", last_layer=last_layer)
    assert "do not fit the model" in refused.value.what
    assert remedy in refused.value.remedy


def test_more_layers_in_the_configuration_than_in_the_file(change):
    with pytest.raises(MismatchError, match=r"transformer\.h\.4\.") as refused:
        load_model(change(n_layer=6), device="cpu")
    assert "block 4, 5" in refused.value.remedy


def test_more_layers_in_the_file_than_in_the_configuration(change):
    with pytest.raises(MismatchError, match=r"more blocks than the 3 of config\.json.*h\.3\."):
        load_model(change(n_layer=3), device="cpu", last_layer=1)


def test_weights_of_another_width(change):
    with pytest.raises((MismatchError, DamagedError), match="weights"):
        load_model(change(n_embd=32), device="cpu")


def test_tied_weights_are_not_missing_and_foreign_tensors_are_noted(change):
    import torch

    model = load_model(change(more={"value_head.weight": torch.zeros(2)}), device="cpu", last_layer=1)
    assert model.notes == ("The weights have tensors that the model does not use: value_head.weight.",)


def test_an_adapter_inside_the_weights_is_refused_although_the_model_is_full(model_folders):
    source = find_model(str(model_folders["gpt2"]))
    info = {"missing_keys": set(), "mismatched_keys": set(), "unexpected_keys": {"transformer.h.0.mlp.lora_A.weight"}}
    with pytest.raises(MismatchError, match="not merged"):
        check_fit(info, source, last_layer=3)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq"])
def test_a_quantised_model_is_refused_with_what_is_supported(change, method):
    folder = change(quantization_config={"quant_method": method, "load_in_4bit": True})
    with pytest.raises(UsageError, match=f"quantised \\({method}\\); weights in bfloat16, float16 or float32"):
        load_model(folder, device="cpu")
