"""``nestcoder.splice`` on the embedded models, against plain hooks and the definition."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from common.errors import MismatchError, UsageError
from evaluate.spliced.splice import splice
from harvest.model.language_model import LanguageModel
from transcoder.transcoder import SourceView, Transcoder

PATHS = {
    "gpt2": ("transformer.h", "mlp", "mlp"),
    "gemma2": ("model.layers", "mlp", "post_feedforward_layernorm"),
}
"""The blocks; in a block, whose input is mlp_in, and whose output is mlp_out."""
Build = Callable[[int], Transcoder]
Edit = Callable[[torch.Tensor], torch.Tensor]


def logits(model: LanguageModel, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.hugging(input_ids=tokens, use_cache=False, **options).logits


def definition(transcoder: Transcoder, source: torch.Tensor, prefix: int, edit: Edit | None = None) -> torch.Tensor:
    """Densely: the k largest of every row, rectified, those of the prefix decoded."""
    pre = source @ transcoder.W_enc.T + transcoder.b_enc
    kept = torch.zeros_like(pre).scatter(-1, pre.topk(8, dim=-1).indices, 1.0)
    features = (pre * kept).relu()
    features = edit(features) if edit else features
    return transcoder.b_dec + features[..., :prefix] @ transcoder.W_dec[:prefix]


def by_plain_hooks(
    model: LanguageModel, tokens: torch.Tensor, stand_ins: dict[int, Callable[[Any, Any], Any]]
) -> torch.Tensor:
    blocks, reads, writes = PATHS[model.source.architecture]
    special = torch.isin(tokens, torch.tensor(model.tokenizer.special_ids))[..., None]
    handles = []
    for layer, stand_in in stand_ins.items():
        block = model.hugging.get_submodule(blocks)[layer]
        seen: dict[str, torch.Tensor] = {}

        def before(_: Any, args: Any, seen: Any = seen) -> None:
            seen["source"] = args[0]

        def after(_: Any, __: Any, out: Any, seen: Any = seen, stand_in: Any = stand_in) -> Any:
            return torch.where(special, out, stand_in(seen["source"], out))

        handles.append(getattr(block, reads).register_forward_pre_hook(before))
        handles.append(getattr(block, writes).register_forward_hook(after))
    try:
        return logits(model, tokens)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("prefix", [None, 48])
def test_several_layers_give_what_plain_hooks_with_the_definition_give(
    embedded: LanguageModel, build: Build, tokens: torch.Tensor, prefix: int | None
) -> None:
    dictionaries = {layer: build(layer) for layer in (3, 8)}
    clean = logits(embedded, tokens)
    expected = by_plain_hooks(
        embedded,
        tokens,
        {
            layer: lambda source, _, transcoder=transcoder: definition(transcoder, source, prefix or 192)
            for layer, transcoder in dictionaries.items()
        },
    )
    with splice(embedded, dictionaries, prefix=prefix), torch.no_grad():
        found = logits(embedded, tokens)
    assert float((expected - clean).abs().max()) > 0.1
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
    with splice(embedded.hugging, dictionaries, prefix=prefix):
        torch.testing.assert_close(logits(embedded, tokens), expected, atol=2e-4, rtol=1e-4)
    assert torch.equal(logits(embedded, tokens), clean)


def test_the_error_term_restores_the_model(embedded: LanguageModel, build: Build, tokens: torch.Tensor) -> None:
    with splice(embedded, {3: build(3), 8: build(8)}, error_term=True):
        found = logits(embedded, tokens)
    torch.testing.assert_close(found, logits(embedded, tokens), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("source_view", ["ln2_normalized", "mlp_in"])
def test_a_dictionary_of_a_normalised_source_reads_it_once(
    embedded: LanguageModel, build: Build, tokens: torch.Tensor, source_view: SourceView
) -> None:
    """As files of other tools are imported, with a cache of that site (mlp_in: as it is stored) or without one."""
    gain, bias = (torch.tensor(build(8).config[name]) for name in ("gain", "bias"))
    sites = {"layer": 8, "source_site": "ln2_normalized", "target_site": "mlp_out"}
    imported = build(8).replaced(source_view=source_view, config=sites)

    def stand_in(source: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return definition(imported, (source - bias) / gain, 192)

    expected = by_plain_hooks(embedded, tokens, {8: stand_in})
    with splice(embedded, {8: imported}), torch.no_grad():
        found = logits(embedded, tokens)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("error_term", [False, True])
def test_a_change_moves_the_target_by_the_features_it_changes(
    embedded: LanguageModel, build: Build, tokens: torch.Tensor, error_term: bool
) -> None:
    transcoder = build(8)
    with splice(embedded, {8: transcoder}, record=True) as seen:
        logits(embedded, tokens)
    often = int((seen[8].activations() > 0).sum((0, 1)).argmax())
    never = int((seen[8].activations() > 0).sum((0, 1)).argmin())

    def edit(features: torch.Tensor) -> torch.Tensor:
        changed = features.clone()
        changed[..., often] = 0.0
        changed[..., never] = features[..., never] + 3
        return changed

    def stand_in(source: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        edited = definition(transcoder, source, 192, edit)
        return own + edited - definition(transcoder, source, 192) if error_term else edited

    change = {8: {often: 0.0, never: lambda activation: activation + 3}}
    with splice(embedded, {8: transcoder}, error_term=error_term, change=change):
        found = logits(embedded, tokens)
    torch.testing.assert_close(found, by_plain_hooks(embedded, tokens, {8: stand_in}), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("layer", [3, 8])
def test_gradients_end_in_the_activations_and_are_those_of_a_small_change(
    embedded: LanguageModel, build: Build, tokens: torch.Tensor, layer: int
) -> None:
    dictionaries = {layer: build(layer)}
    with splice(embedded, dictionaries, error_term=True, record=True) as seen:
        logits(embedded, tokens)[0, -1, 42].backward()
    gradients = seen[layer].gradients()
    assert gradients.shape == (2, 14, 192)
    assert not gradients[1].any(), "the other text has no part in it"
    assert not gradients[0, 0].any(), "nor has the special token"
    feature = int(gradients.sum((0, 1)).abs().argmax())
    sides = []
    for step in (0.02, -0.02):
        change = {layer: {feature: lambda a, step=step: torch.where(a > 0, a + step, a)}}
        with splice(embedded, dictionaries, error_term=True, change=change), torch.no_grad():
            sides.append(float(logits(embedded, tokens)[0, -1, 42]))
    assert (sides[0] - sides[1]) / 0.04 == pytest.approx(float(gradients[0, :, feature].sum()), rel=0.05, abs=2e-3)


def test_gradients_go_through_later_dictionaries(embedded: LanguageModel, build: Build, tokens: torch.Tensor) -> None:
    with splice(embedded, {3: build(3), 8: build(8)}, record=True) as seen:
        logits(embedded, tokens)[0, -1, 42].backward()
    assert seen[3].gradients().any()
    assert seen[8].gradients().any()
    with splice(embedded, {8: build(8)}, record=True) as alone:
        logits(embedded, tokens)
    with pytest.raises(UsageError, match="There are no gradients yet"):
        alone[8].gradients()


def test_the_record_has_the_code_and_the_error_of_the_dictionary(
    embedded: LanguageModel, build: Build, tokens: torch.Tensor
) -> None:
    transcoder = build(8)
    with splice(embedded, {8: transcoder}, record=True) as seen, torch.no_grad():
        logits(embedded, tokens)
    special = torch.isin(tokens, torch.tensor(embedded.tokenizer.special_ids))
    activations = seen[8].activations()
    assert torch.equal(seen[8].ordinary, ~special)
    assert not activations[special].any()
    assert int((activations > 0).sum(2).max()) <= 8
    assert seen[8].error.shape == (int((~special).sum()), embedded.source.width)


def test_it_works_while_text_is_generated(embedded: LanguageModel, build: Build, tokens: torch.Tensor) -> None:
    """A pass over one new token gives what the pass over all tokens gives."""
    with splice(embedded, {8: build(8)}), torch.no_grad():
        expected = logits(embedded, tokens[:1])[:, -1]
        first = embedded.hugging(input_ids=tokens[:1, :-1], use_cache=True)
        last = embedded.hugging(input_ids=tokens[:1, -1:], past_key_values=first.past_key_values).logits[:, -1]
    torch.testing.assert_close(last, expected, atol=2e-4, rtol=1e-4)


def test_what_does_not_fit_the_model_is_refused(embedded: LanguageModel, build: Build, tokens: torch.Tensor) -> None:
    transcoder = build(8)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"transcoders": {3: transcoder}}, MismatchError, "trained on layer 8, not 3"),
        ({"transcoders": {99: transcoder}}, UsageError, "there is no layer 99"),
        ({"transcoders": {8: transcoder}, "prefix": 50}, UsageError, "50 is not a prefix"),
        ({"transcoders": {8: transcoder}, "change": {3: {1: 0.0}}}, UsageError, "a change for layer 3"),
        ({"transcoders": {8: transcoder}, "change": {8: {192: 0.0}}}, UsageError, "uses features 0 to 191, not 192"),
        ({"transcoders": {8: transcoder}, "prefix": 48, "change": {8: {50: 0.0}}}, UsageError, "features 0 to 47"),
    ]
    for arguments, kind, words in cases:
        with pytest.raises(kind, match=words), splice(embedded, **arguments):
            pass
    arrays = {"W_enc": torch.zeros(4, 5), "b_enc": torch.zeros(4), "W_dec": torch.zeros(4, 5), "b_dec": torch.zeros(5)}
    narrow = Transcoder(**arrays, rule=transcoder.rule)
    with pytest.raises(MismatchError, match="maps width 5 to 5"), splice(embedded, {8: narrow}):
        pass
    everywhere = {"special_ids": ()}
    with splice(embedded, {8: transcoder}, **everywhere), torch.no_grad():
        assert not torch.equal(logits(embedded, tokens)[:, 0], logits(embedded, tokens)[:, 1])
        first = logits(embedded, tokens)[:, 0]
    assert float((first - logits(embedded, tokens)[:, 0]).abs().max()) > 1e-2
