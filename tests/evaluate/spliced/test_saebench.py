"""The adapter does what SAEBench's code does with an SAE, and refuses what would measure something else."""

from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch

from common.errors import UsageError
from evaluate.spliced.saebench import SAEBenchAdapter
from evaluate.spliced.splice import splice
from harvest.model.language_model import LanguageModel, boot_bridge
from transcoder.transcoder import Transcoder

Build = Callable[[int], Transcoder]


def test_it_encodes_what_the_hook_point_gives(embedded: LanguageModel, build: Build, tokens: torch.Tensor) -> None:
    transcoder = build(8)
    adapter = SAEBenchAdapter(transcoder, model_name="gpt2").to(device="cpu", dtype=torch.float32)
    assert adapter.cfg.hook_name == "blocks.8.ln2.hook_normalized"
    _, cache = boot_bridge(embedded).run_with_cache(tokens, names_filter=[adapter.cfg.hook_name], stop_at_layer=9)
    found = adapter.encode(cache[adapter.cfg.hook_name])
    with splice(embedded, {8: transcoder}, special_ids=(), error_term=True, record=True) as seen, torch.no_grad():
        embedded.hugging(input_ids=tokens)
    torch.testing.assert_close(found, seen[8].activations(), atol=1e-3, rtol=1e-3)
    assert torch.equal(adapter.encode(cache[adapter.cfg.hook_name][0]), found[0])


def test_the_adapter_has_what_sparse_probing_and_autointerp_read(build: Build) -> None:
    adapter = SAEBenchAdapter(build(8).truncate(48), model_name="gpt2", context_size=64)
    assert adapter.W_enc.shape == (96, 48)
    assert adapter.b_enc.shape == (48,)
    assert adapter.W_dec.shape[0] == 48
    assert torch.allclose(adapter.W_dec.data.norm(dim=1), torch.ones(48)), "SAEBench looks at the norms of any SAE"
    assert (adapter.cfg.d_in, adapter.cfg.d_sae, adapter.cfg.hook_layer, adapter.cfg.context_size) == (96, 48, 8, 64)
    assert asdict(adapter.cfg) == adapter.cfg.to_dict()
    assert adapter.encode(torch.randn(2, 3, 96, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_evaluations_that_would_measure_something_else_are_refused(build: Build) -> None:
    adapter = SAEBenchAdapter(build(8), model_name="gpt2")
    for use in (adapter, lambda x: adapter.decode(adapter.encode(x))):  # core, scr, tpp, ravel, unlearning
        with pytest.raises(UsageError, match="core, scr, tpp, ravel and unlearning"):
            use(torch.randn(2, 96))
    probe = torch.randn(96)
    for use in (  # both lines of its absorption
        lambda: torch.nn.functional.cosine_similarity(probe, adapter.W_dec, dim=-1),
        lambda: adapter.W_dec / torch.norm(adapter.W_dec.data, dim=-1, keepdim=True),
    ):
        with pytest.raises(UsageError, match="SAEBench's absorption"):
            use()
    with pytest.raises(UsageError, match="does not say its layer"):
        SAEBenchAdapter(build(8).replaced(config={}), model_name="gpt2")


def test_an_autoencoder_is_adapted_without_a_second_site(build: Build) -> None:
    sites = {"layer": 8, "source_site": "resid_post", "target_site": "resid_post"}
    transcoder = build(8).replaced(config=sites)
    adapter = SAEBenchAdapter(transcoder, model_name="gpt2")
    x = torch.randn(2, 3, 96)
    assert adapter.cfg.hook_name == "blocks.8.hook_resid_post"
    assert torch.is_tensor(adapter.W_dec)
    expected = transcoder.forward(x.flatten(0, 1)).view(2, 3, 96)
    torch.testing.assert_close(adapter(x), expected, atol=1e-5, rtol=1e-5)
