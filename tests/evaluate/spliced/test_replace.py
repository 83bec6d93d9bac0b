"""Every site of every kind of block, replaced: the model computes what it does with plain hooks on that module."""

from typing import Any, get_args

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
)

from common.errors import UsageError
from evaluate.spliced.replace import Host, Ordinary, SitePair, replacing
from harvest.config import Site

LAYER, WIDTH, SPECIAL = 1, 32, 0
SMALL: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip
CONFIGS: dict[str, PretrainedConfig] = {
    "gpt2": GPT2Config(vocab_size=50, n_positions=32, n_embd=WIDTH, n_layer=3, n_head=4),
    "gemma2": Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=16),
    "llama": LlamaConfig(**SMALL, num_key_value_heads=2),
    "gpt_neox": GPTNeoXConfig(**SMALL),
    "gpt_neox, one after the other": GPTNeoXConfig(**SMALL, use_parallel_residual=False),
}
MODULES = {
    "gpt2": ("transformer.h", "attn", "ln_2", "mlp"),
    "gemma2": ("model.layers", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    "llama": ("model.layers", "self_attn", "post_attention_layernorm", "mlp"),
    "gpt_neox": ("gpt_neox.layers", "attention", "post_attention_layernorm", "mlp"),
}
"""The blocks, and in a block the modules whose outputs are attn_out, mlp_in and mlp_out."""


@pytest.fixture(scope="module", params=CONFIGS)
def named(request: pytest.FixtureRequest) -> tuple[str, Any]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape))
    return request.param, model


def logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens, use_cache=False).logits


def with_added(model: Any, module: Any, amount: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The logits if a plain hook adds to the output of a module, except at special tokens."""
    add = amount * (tokens != SPECIAL)[..., None]

    def hook(_: Any, __: Any, out: Any) -> Any:
        return (out[0] + add, *out[1:]) if isinstance(out, tuple) else out + add

    handle = module.register_forward_hook(hook)
    try:
        return logits(model, tokens)
    finally:
        handle.remove()


@pytest.mark.parametrize("site", get_args(Site))
def test_adding_at_a_site_is_adding_to_the_output_of_its_module(named: tuple[str, Any], site: Site) -> None:
    name, model = named
    host = Host.from_model(model)
    tokens = torch.randint(1, 50, (2, 12), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = SPECIAL
    tokens[1, 5] = SPECIAL
    amount = torch.randn(WIDTH, generator=torch.Generator().manual_seed(2))
    site_pair = (
        SitePair("mlp_in", site) if site not in ("resid_pre", "attn_out", "ln2_normalized") else SitePair(site, site)
    )
    if site == "resid_mid":
        site_pair = SitePair("resid_mid", "resid_mid")
    added = {LAYER: (site_pair, lambda _, own: own + amount)}
    if host.family.parallel and site == "resid_mid":
        with pytest.raises(UsageError, match="has no resid_mid"), replacing(host, added, Ordinary()):
            pass
        return
    if host.family.parallel and site == "ln2_normalized":
        with pytest.raises(UsageError, match="attention reads"), replacing(host, added, Ordinary()):
            pass
        return

    blocks, attention, norm, mlp = MODULES[name.split(",")[0]]
    block = model.get_submodule(blocks)[LAYER]
    module = {
        "resid_pre": model.get_submodule(blocks)[LAYER - 1],
        "attn_out": block.get_submodule(attention),
        "resid_mid": block.get_submodule(attention),
        "mlp_in": block.get_submodule(norm),
        "ln2_normalized": block.get_submodule(norm),
        "mlp_out": block.get_submodule(mlp),
        "resid_post": block,
    }[site]
    clean = logits(model, tokens)
    expected = with_added(model, module, amount * (host.norm(LAYER).gain if site == "ln2_normalized" else 1), tokens)
    with replacing(host, added, Ordinary((SPECIAL,))):
        found = logits(model, tokens)
    assert float((expected - clean).abs().max()) > 0.05
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(model, tokens), clean), "the hooks are gone"


@pytest.mark.parametrize("site", get_args(Site))
def test_replacing_a_site_by_its_own_value_changes_nothing(named: tuple[str, Any], site: Site) -> None:
    _, model = named
    host = Host.from_model(model)
    if site not in host.family.ends or (host.family.parallel and site == "ln2_normalized"):
        return
    tokens = torch.arange(1, 13)[None]
    seen: list[torch.Tensor] = []

    def same(source: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        seen.append(source)
        torch.testing.assert_close(source, own)
        return own

    with replacing(host, {LAYER: (SitePair(site, site), same)}, Ordinary((SPECIAL,))):
        found = logits(model, tokens)
    assert [tuple(source.shape) for source in seen] == [(12, WIDTH)]
    torch.testing.assert_close(found, logits(model, tokens), atol=1e-5, rtol=1e-5)


def test_what_cannot_be_replaced_is_refused(named: tuple[str, Any]) -> None:
    host = Host.from_model(named[1])
    with pytest.raises(UsageError, match="layers 0 to 2; there is no layer 3"):
        host.check(3, SitePair("mlp_in", "mlp_out"))
    with pytest.raises(UsageError, match="is not a site"):
        SitePair.from_facts({"source_site": "mlp_in", "target_site": "hook_z"})
    with pytest.raises(UsageError, match="Linear is not a causal language model"):
        Host.from_model(torch.nn.Linear(2, 2))
    embedded = named[1].get_input_embeddings()(torch.arange(4)[None])
    unchanged = {LAYER: (SitePair("mlp_in", "mlp_out"), lambda _, own: own)}
    with replacing(host, unchanged, Ordinary((SPECIAL,))), pytest.raises(UsageError, match="embeddings, not tokens"):
        named[1](inputs_embeds=embedded)
    with replacing(host, unchanged, Ordinary()):
        assert named[1](inputs_embeds=embedded).logits.shape == (1, 4, 50)
