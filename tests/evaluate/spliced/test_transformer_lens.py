"""The hooks run in TransformerLens's own bridge give what ``nestcoder.splice`` gives in the Hugging Face model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from common.errors import UsageError
from evaluate.spliced.splice import splice
from evaluate.spliced.transformer_lens import transformer_lens_hooks
from harvest.model.language_model import LanguageModel, boot_bridge
from transcoder.transcoder import Transcoder

Build = Callable[[int], Transcoder]


@pytest.fixture(scope="module")
def bridge(embedded: LanguageModel) -> Any:
    return boot_bridge(embedded)


@pytest.mark.parametrize("with_gain", [True, False])
def test_the_hooks_splice_as_the_hugging_face_model_is_spliced(
    embedded: LanguageModel, bridge: Any, build: Build, tokens: torch.Tensor, with_gain: bool
) -> None:
    dictionaries = {layer: build(layer) for layer in (3, 8)}
    if not with_gain:  # a foreign dictionary: the MLP's input is read where bridges have it
        dictionaries = {layer: each.replaced(config={"layer": layer}) for layer, each in dictionaries.items()}
    ordinary = ~torch.isin(tokens, torch.tensor(embedded.tokenizer.special_ids))
    for options in ({"prefix": 48}, {"error_term": True, "change": {8: {5: 2.0}}})[: 1 + with_gain]:
        with splice(embedded, dictionaries, **options), torch.no_grad():
            expected = embedded.hugging(input_ids=tokens).logits
        hooks = transformer_lens_hooks(dictionaries, ordinary=ordinary, **options)
        assert [name for name, _ in hooks][1] == "blocks.3.hook_mlp_out"
        assert ("hook_normalized" in hooks[0][0]) == with_gain
        with torch.no_grad():
            found = bridge.run_with_hooks(tokens, fwd_hooks=hooks, return_type="logits")
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_dictionary_that_reads_before_the_gain_reads_that_hook(
    embedded: LanguageModel, bridge: Any, build: Build, tokens: torch.Tensor
) -> None:
    """Gemma Scope's view; in the Hugging Face model the norm's gain is undone."""
    view = build(8).replaced(source_view="ln2_normalized")
    with splice(embedded, {8: view}, special_ids=()), torch.no_grad():
        expected = embedded.hugging(input_ids=tokens).logits
    found = bridge.run_with_hooks(tokens, fwd_hooks=transformer_lens_hooks({8: view}), return_type="logits")
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_site_that_cannot_be_replaced_there_is_refused(build: Build) -> None:
    for site in ("resid_mid", "ln2_normalized"):
        sites = {"source_site": site, "target_site": site}
        with pytest.raises(UsageError, match=f"replaces {site} only for what the MLP reads"):
            transformer_lens_hooks({8: build(8).replaced(config=sites)})
