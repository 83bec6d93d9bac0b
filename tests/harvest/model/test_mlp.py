"""The MLP that a cache keeps instead of targets, against Hugging Face's own module; whole harvests that keep it."""

import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from cache.config import CacheSettings
from cache.reader import CacheReader
from cache.tools.verify import verify_cache
from common.errors import NumericalError, UsageError
from harvest import run as run_module
from harvest.config import HarvestSettings
from harvest.model.language_model import load_model
from harvest.model.mlp import mlp_of
from harvest.model.sites import module_at
from harvest.request import HarvestRequest
from harvest.run import harvest_layers

LAYER = 2
FORMS = ("llama", "qwen3", "gemma", "gpt_neox", "phi")
SMALL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "head_dim": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(model_folders, tmp_path_factory):
    found = dict(model_folders)
    for name in FORMS:
        torch.manual_seed(0)
        found[name] = tmp_path_factory.mktemp(name)
        AutoModelForCausalLM.from_config(CONFIG_MAPPING[name](**SMALL)).save_pretrained(found[name])
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (found[name] / file).write_bytes((model_folders["gpt2"] / file).read_bytes())
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", *FORMS])
def test_it_gives_what_hugging_faces_module_gives(folders, name, dtype):
    model = load_model(str(folders[name]), device="cpu", dtype=dtype)
    source = torch.randn(7, 64, generator=torch.Generator().manual_seed(1)).to(model.dtype)
    block, family = model.block(LAYER), model.family
    expected = module_at(block, family.mlp)(source)
    if family.post_norm:
        expected = module_at(block, family.post_norm)(expected)
    found = mlp_of(model, LAYER).target(source)
    assert found.dtype == model.dtype
    bound = 1e-6 if dtype == "float32" else 4e-3
    assert (found - expected).double().norm() <= bound * expected.double().norm()


@pytest.fixture
def harvested(folders, family, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text(
        "".join(json.dumps({"text": f"document {n}: " + "a quick fox " * (n % 9)}) + "\n" for n in range(90))
    )

    def harvest(folder, **changes):
        cache = CacheSettings(chunk_rows=16, shard_rows=64, segment_rows=128, held_out_fraction=0.3, target="recompute")
        given = HarvestSettings(
            dataset=str(text), context=32, train_tokens=700, held_out_tokens=200, batch_contexts=4, **changes
        )
        request = HarvestRequest(str(folders[family]), {LAYER: folder}, settings=given, cache=cache, device="cpu")
        harvest_layers(request)
        return CacheReader.open(folder)

    return harvest


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_harvest_keeps_the_mlp_and_proves_it(harvested, tmp_path, dtype):
    reader = harvested(tmp_path / "cache", dtype=dtype)
    proof = reader.identity["proof"]
    assert proof["errors"]["recomputed = mlp_out"] <= proof["tolerances"]["recomputed = mlp_out"]
    assert not (tmp_path / "cache/rows.zarr/train/target").exists()
    assert not verify_cache(tmp_path / "cache").faults
    assert reader.split("train").rows(slice(0, 50)).target.shape == (50, 64)
    assert reader.statistics.target.storage_floor < 1e-4


def test_other_sites_are_refused(harvested, tmp_path):
    with pytest.raises(UsageError, match="cannot be recomputed from resid_mid"):
        harvested(tmp_path / "cache", source="resid_mid")


def test_another_layers_mlp_fails_the_proof(harvested, tmp_path, monkeypatch):
    monkeypatch.setattr(run_module, "mlp_of", lambda model, layer: mlp_of(model, layer - 1))
    with pytest.raises(NumericalError, match="recomputed = mlp_out"):
        harvested(tmp_path / "cache")


def test_an_mlp_of_another_form_is_refused_naming_its_modules(folders):
    model = load_model(str(folders["llama"]), device="cpu", dtype="float32")
    mlp = model.block(LAYER).mlp
    mlp.other_proj = mlp.up_proj
    del mlp.up_proj
    with pytest.raises(UsageError, match=r"of the form that.*\n.*gate_proj, down_proj"):
        mlp_of(model, LAYER)
