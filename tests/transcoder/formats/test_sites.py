"""Names of tensors, ours and others'."""

import pytest

from transcoder.formats.sites import SITES, LayerSite, hook_of, module_of, site_of_hook, sites_of_module


def test_the_hook_of_every_site_names_that_site() -> None:
    for site in SITES:
        assert site_of_hook(hook_of(site, 11)) == LayerSite(site, 11)
    assert site_of_hook("blocks.3.ln2.hook_out") == LayerSite("mlp_in", 3)


@pytest.mark.parametrize("hook", ["blocks.8.hook_mlp_in", "blocks.8.attn.hook_z", "blocks.x.hook_mlp_out", None, 7])
def test_an_ambiguous_or_unknown_hook_has_no_site(hook: object) -> None:
    assert site_of_hook(hook) is None


def test_an_mlps_own_output_is_what_it_adds_unless_a_norm_follows() -> None:
    assert site_of_hook("blocks.8.mlp.hook_out", model="gpt2") == LayerSite("mlp_out", 8)
    for model in ("google/gemma-2-2b", "gemma3", "gemma-3-4b-pt"):
        assert site_of_hook("blocks.8.mlp.hook_out", model=model) is None


def test_modules() -> None:
    transcoder = (LayerSite("mlp_in", 8), LayerSite("mlp_out", 8))
    assert sites_of_module("h.8.mlp", transcodes=True) == transcoder
    assert sites_of_module("model.layers.8.mlp", transcodes=True) == transcoder
    assert sites_of_module("layers.8", transcodes=False) == (LayerSite("resid_post", 8),) * 2
    assert sites_of_module("layers.8", transcodes=True) is None
    assert sites_of_module("layers.8.attn", transcodes=False) is None
    assert module_of("mlp_out", 8, architecture="gpt2") == "h.8.mlp"
    assert module_of("resid_post", 8, architecture="gemma2") == "layers.8"
    assert module_of("resid_mid", 8, architecture="gemma2") is None
