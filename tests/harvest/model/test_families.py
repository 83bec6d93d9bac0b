"""Architectures that no table lists: derived, proved against plain Hugging Face hooks, or refused in one sentence."""

import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.utils import logging as hugging_logging

from cache.config import CacheSettings
from cache.reader import CacheReader
from common.errors import NumericalError, UsageError
from evaluate.spliced.contexts import Contexts
from evaluate.spliced.replace import MLP
from evaluate.spliced.splicer import Splicer
from harvest.config import HarvestSettings
from harvest.model.families import family_of
from harvest.model.forward import Key, run_modules
from harvest.model.language_model import boot_bridge, load_model
from harvest.model.proof import ALONE, prove_sites
from harvest.plan import plan_harvest
from harvest.request import HarvestRequest
from harvest.run import harvest_layers

LAYER = 1
SMALL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
GROUPED = SMALL | {"num_key_value_heads": 2}
CONFIGS = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 16},
    "mistral": GROUPED | {"sliding_window": 16},
    "gemma": GROUPED | {"head_dim": 16},
    "gpt_neox": SMALL,
    "phi": SMALL,
}
PARALLEL = {"gpt_neox", "phi"}
# For each family, by hand: the blocks, then a block's norm before the MLP and its attention.
PATHS = dict.fromkeys(CONFIGS, ("model", "post_attention_layernorm", "self_attn")) | {
    "gpt_neox": ("gpt_neox", "post_attention_layernorm", "attention"),
    "phi": ("model", "input_layernorm", "self_attn"),
}


def make(folder, tokenizers, name, **changes):
    """A random model whose norms are random too, so that nothing cancels by being trivial."""
    hugging_logging.disable_progress_bar()
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name](**CONFIGS.get(name, GROUPED) | changes)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((tokenizers / file).read_bytes())
    return folder


@pytest.fixture(scope="module")
def folders(model_folders, tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp(name), model_folders["gpt2"], name) for name in CONFIGS}


@pytest.fixture
def batch():
    drawn = torch.randint(3, 200, (2, 40), generator=torch.Generator().manual_seed(0))
    drawn[:, 0] = 0
    return drawn


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {n}: " + "a fox " * (n % 9)}) + "\n" for n in range(60)))
    return path


def oracle(folder, name, dtype, batch):
    """The sites by hooks on a whole model that this project never touched."""
    hugging = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    root, norm, attention = PATHS[name]
    block, found = getattr(hugging, root).layers[LAYER], {}

    def keep(site):
        return lambda _, __, out: found.__setitem__(site, out[0] if isinstance(out, tuple) else out)

    getattr(block, norm).register_forward_hook(keep("mlp_in"))
    getattr(block, norm).register_forward_pre_hook(lambda _, args: found.__setitem__("resid_mid", args[0]))
    block.mlp.register_forward_hook(keep("mlp_out"))
    getattr(block, attention).register_forward_hook(keep("attn_out"))
    with torch.inference_mode():
        states = hugging(batch, output_hidden_states=True).hidden_states
    found |= {"resid_pre": states[LAYER], "resid_post": states[LAYER + 1]}
    if name in PARALLEL:
        del found["resid_mid"]
    return found, getattr(block, norm)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_derived_family_is_proved_and_its_sites_are_what_plain_hooks_see(folders, name, dtype, batch):
    model = load_model(str(folders[name]), device="cpu", dtype=dtype, last_layer=LAYER)
    expected, plain_norm = oracle(folders[name], name, model.dtype, batch)
    assert set(model.family.ends) == {*expected, "ln2_normalized"}
    keys: list[Key] = [(LAYER, site) for site in model.family.ends]
    found = run_modules(model, batch, keys=keys)
    for site, tensor in expected.items():
        assert torch.equal(found[LAYER, site], tensor), site
    norm = model.norm(LAYER)
    assert torch.equal(norm.gain, plain_norm.weight.float() + (name == "gemma"))
    assert (norm.bias != 0).any() == (name in PARALLEL)
    sites = list(model.family.ends)
    (proof,) = prove_sites(model, boot_bridge(model), batch, layers=[LAYER], sites=sites, within_documents=True)
    proof.require()
    assert proof.errors["mlp(mlp_in) = mlp_out"] == 0
    assert proof.errors[ALONE] < (1e-5 if dtype == "float32" else 3e-2)
    residual = "resid_pre + attn_out + mlp_out" if name in PARALLEL else "resid_mid + mlp_out"
    assert proof.errors[f"{residual} = resid_post"] < (1e-6 if dtype == "float32" else 4e-3)


def settings(text, **changes):
    return HarvestSettings(dataset=str(text), context=32, train_tokens=200, held_out_tokens=60, **changes)


def given(folder, text, out, **changes):
    cache = CacheSettings(held_out_fraction=0.3)
    return HarvestRequest(str(folder), {LAYER: out}, settings=settings(text, **changes), cache=cache, device="cpu")


def harvest(folder, text, out, **changes):
    return harvest_layers(given(folder, text, out, **changes))


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_a_derived_family_goes_through_plan_harvest_and_splice(folders, name, text, tmp_path):
    folder = folders[name]
    plan = plan_harvest(given(folder, text, tmp_path / "c", attention="document"))
    model = load_model(str(folder), device="cpu")
    outside = sum(p.numel() for n, p in model.hugging.named_parameters() if "layers.2." not in n)
    assert (plan.architecture, plan.weight_bytes) == (name, 4 * outside)
    harvest(folder, text, tmp_path / "c", attention="document")
    reader = CacheReader.open(tmp_path / "c")
    assert reader.identity["architecture"] == name
    assert reader.identity["proof"]["errors"][ALONE] < 1e-5
    assert reader.identity["proof"]["modules"].startswith(f"{name}: ")
    assert harvest(folder, text, tmp_path / "c", attention="document")[LAYER]["rows"] == 0

    contexts = Contexts(*(torch.arange(24)[None] + first for first in (3, 0, 0)))
    splicer = Splicer(model, {LAYER: MLP}, special_ids=(0,))
    mlp = model.hugging.get_submodule(f"{model.family.blocks}.{LAYER}.mlp").forward  # past the hooks
    ways = (lambda source, _: mlp(source), lambda _, own: torch.zeros_like(own))
    same, zero = (splicer.log_probabilities(contexts, {LAYER: way}) for way in ways)
    clean = splicer.log_probabilities(contexts)
    assert torch.allclose(same, clean, atol=1e-5)
    assert not torch.allclose(zero, clean, atol=1e-2)


def test_parallel_attention_has_no_resid_mid(folders, text, tmp_path):
    with pytest.raises(UsageError, match="in one step, so it has no resid_mid") as raised:
        harvest(folders["gpt_neox"], text, tmp_path / "c", source="resid_mid")
    assert "resid_pre" in raised.value.remedy


def test_sequential_attention_of_the_same_architecture_has_one(model_folders, text, tmp_path):
    folder = make(tmp_path, model_folders["gpt2"], "gpt_neox", use_parallel_residual=False)
    harvest(folder, text, tmp_path / "c", source="resid_mid")
    assert "resid_mid + mlp_out = resid_post" in CacheReader.open(tmp_path / "c").identity["proof"]["errors"]


def test_a_family_that_scales_its_residuals_is_stopped_by_the_proof_with_numbers(model_folders, text, tmp_path):
    folder = make(tmp_path, model_folders["gpt2"], "granite", residual_multiplier=0.3)
    with pytest.raises(NumericalError, match=r"resid_mid \+ mlp_out = resid_post: [0-9.]+ \(at most 1e-05\)") as raised:
        harvest(folder, text, tmp_path / "c")
    assert "granite: model.layers.1 of post_attention_layernorm, mlp" in raised.value.where
    assert not (tmp_path / "c").exists()


def test_a_proof_that_cannot_be_computed_refuses_the_architecture(model_folders, text, tmp_path):
    """Hugging Face's CodeGen multiplies float32 by bfloat16."""
    small = {"vocab_size": 320, "n_positions": 64, "n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 8}
    folder = make(tmp_path, model_folders["gpt2"], "codegen", **small)
    with pytest.raises(UsageError, match="'codegen' is not supported: the proof of its sites could not be computed"):
        harvest(folder, text, tmp_path / "c", dtype="bfloat16")


@pytest.mark.parametrize(
    ("name", "architecture", "why"),
    [
        ("mixtral", "MixtralForCausalLM", "mixtures of experts"),
        ("olmo2", "Olmo2ForCausalLM", "there is no norm before its MLP"),
        ("opt", "OPTForCausalLM", "names no module in it for a block's MLP"),
        ("mamba", "MambaForCausalLM", "its configuration lacks"),
        ("bert", "BertForMaskedLM", "not a causal model of text alone"),
        ("t5", "T5ForConditionalGeneration", "lacks max_position_embeddings"),
        ("llava", "LlavaForConditionalGeneration", "its configuration lacks"),
        ("bloom", "BloomForCausalLM", "lacks max_position_embeddings"),
        ("helium", "HeliumForCausalLM", "TransformerLens does not describe it"),
    ],
)
def test_a_model_without_the_sites_is_refused_with_the_reason(name, architecture, why):
    config = CONFIG_MAPPING[name]()
    config.architectures = [architecture]
    with pytest.raises(UsageError, match=f"'{name}' is not supported: .*{why}") as raised:
        family_of(config)
    assert "Llama, Qwen" in raised.value.remedy


def test_a_missing_module_is_named(folders, monkeypatch):
    monkeypatch.setattr("harvest.model.source.family_of", lambda _: family_of(CONFIG_MAPPING["gpt_neox"](**SMALL)))
    with pytest.raises(UsageError, match=r"names a module that it does not have .*gpt_neox"):
        load_model(str(folders["llama"]), device="cpu")
