"""``nestcoder.splice``: dictionaries in place of parts of a language model, for attribution, ablation and steering.

    y_p(source)                                          the prefix p of the dictionary, instead of the target
    + (target - y_p(source)), a constant                 with the error term: the model's own numbers again
    + sum over changed features f of (a'_f - a_f) W_dec[f]

``a'`` is the changed activation. With the error term, the model computes the same as without a dictionary, except for
the changes; gradients go through the features in both cases.
"""

from collections.abc import Callable, Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.errors import MismatchError, UsageError
from evaluate.spliced.replace import Host, Ordinary, Replacement, SitePair, replacing
from harvest.model.language_model import LanguageModel
from harvest.model.sites import Norm
from transcoder.sparse_code import SparseCode, columns_of
from transcoder.transcoder import SourceView, Transcoder

Change = float | Callable[[Float[Tensor, " rows"]], Float[Tensor, " rows"]]
"""What an activation becomes: a number, or a function of the activations of some rows."""


@dataclass
class Seen:
    """What one layer's dictionary computed in the last pass. ``code`` has a row for every position that is True in
    ``ordinary``; its values have a gradient after ``backward()``."""

    transcoder: Transcoder
    code: SparseCode
    ordinary: Bool[Tensor, "batch pos"]
    error: Float[Tensor, "rows d_target"]
    """What the dictionary missed of the target, before any change."""

    def activations(self) -> Float[Tensor, "batch pos dict_size"]:
        """Every feature at every position, before any change; 0 at special tokens."""
        return self._spread(self.code.values.detach())

    def gradients(self) -> Float[Tensor, "batch pos dict_size"]:
        """The gradient of each active feature after ``backward()``; activation times gradient is its attribution.

        Raises UsageError if there was no ``backward()``.
        """
        if self.code.values.grad is None:
            raise UsageError("There are no gradients yet.", remedy="Call backward() on a number of this pass first.")
        return self._spread(self.code.values.grad)

    def _spread(self, values: Float[Tensor, " active"]) -> Float[Tensor, "batch pos dict_size"]:
        rows = replace(self.code, values=values).dense(self.transcoder.dict_size)
        table = rows.new_zeros(*self.ordinary.shape, rows.shape[1])
        table[self.ordinary.to(rows.device)] = rows
        return table


@contextmanager
def splice(
    model: Any,
    transcoders: Mapping[int, Transcoder],
    *,
    prefix: int | None = None,
    error_term: bool = False,
    change: Mapping[int, Mapping[int, Change]] | None = None,
    special_ids: Collection[int] | None = None,
    record: bool = False,
) -> Generator[dict[int, Seen]]:
    """While the block runs, the model computes with these dictionaries, by layer, in place of what they imitate.

    ``model`` is Hugging Face's causal language model, of any architecture that a harvest takes. A dictionary stands in
    for the target site of its config.json (the MLP's output where that says nothing). ``prefix`` is one that all of
    them have; None uses each as it is. ``error_term`` adds what the dictionary misses, as a constant. ``change`` sets
    activations: ``{8: {123: 0.0, 40: lambda a: 2 * a + 5}}`` ablates feature 123 of layer 8 and steers by feature 40.
    Positions of ``special_ids`` keep the model's own values, as in training (None: the ids that the model's
    configuration calls bos, eos and pad; ``()``: none do). ``record`` gives, by layer, what was ``Seen`` on the last
    pass, and lets gradients end in the activations.

        with nestcoder.splice(model, {8: transcoder}, error_term=True, record=True) as seen:
            model(input_ids=tokens).logits[0, -1, 42].backward()
        attribution = seen[8].activations() * seen[8].gradients()

    Raises UsageError for a layer, site, prefix or feature that is not there, MismatchError for another width or layer.
    """
    host = Host.from_model(model)
    changes = change or {}
    if strangers := set(changes) - set(transcoders):
        raise UsageError(f"There is a change for layer {min(strangers)}, but no dictionary for that layer.")
    ordinary = Ordinary(_special_ids(model) if special_ids is None else tuple(special_ids))
    seen: dict[int, Seen] = {}
    replacements: dict[int, tuple[SitePair, Replacement]] = {}
    for layer, transcoder in transcoders.items():
        sites = SitePair.from_facts(transcoder.config, location=transcoder.name)
        host.check(layer, sites)
        used = transcoder if prefix is None else transcoder.truncate(prefix)
        _check(used, layer, host.width)
        if sites.source == "ln2_normalized":
            # What is seen there is in the dictionary's view already: undone again, it would be another tensor.
            used = used.replaced(source_view="mlp_in")
        note = _note(seen, layer, used, ordinary) if record else None
        stand_in = StandIn(used, host.norm(layer), changes.get(layer), error_term=error_term, note=note)
        replacements[layer] = (sites, stand_in)
    with replacing(host, replacements, ordinary):
        yield seen


class StandIn:
    """A dictionary as a replacement of its target; ``note`` hears of every pass's code and error. ``norm`` is that of
    the model's layer; one that reads the source as it is needs none.

    Raises UsageError for a change of a feature that it does not use.
    """

    def __init__(
        self,
        transcoder: Transcoder,
        norm: Norm | None,
        change: Mapping[int, Change] | None = None,
        *,
        error_term: bool = False,
        note: Callable[[SparseCode, Tensor], None] | None = None,
    ) -> None:
        self._transcoder = transcoder
        self._norm = norm
        self._change = change or {}
        self._error_term = error_term
        self._note = note
        for feature in self._change:
            if not 0 <= feature < transcoder.prefix:
                raise UsageError(f"{transcoder.name} uses features 0 to {transcoder.prefix - 1}, not {feature}.")

    def __call__(
        self, source: Float[Tensor, "rows d_source"], own: Float[Tensor, "rows d_target"]
    ) -> Float[Tensor, "rows d_target"]:
        """What the model goes on with, on the dictionary's device; differentiable where gradients are on."""
        transcoder = self._transcoder
        seen = self.as_read(source)
        code = transcoder.select(seen) if torch.is_grad_enabled() else transcoder.sparse_code(seen)
        if self._note and torch.is_grad_enabled():
            # Without a graph they are leaves: gradients end here, and earlier layers need no memory for them.
            code.values.requires_grad_() if code.values.is_leaf else code.values.retain_grad()
        plain = transcoder.reconstruct(code, seen)[:, transcoder.prefixes.index(transcoder.prefix)]
        error = (own.to(plain.device).float() - plain).detach()
        if self._note:
            self._note(code, error)
        new = plain + self._changed(code) if self._change else plain
        return new + error if self._error_term else new

    def as_read(self, source: Float[Tensor, "rows d_source"]) -> Float[Tensor, "rows d_source"]:
        """The source in the view of the dictionary, on its device."""
        return as_read(source, self._transcoder.source_view, self._norm, self._transcoder.b_enc.device)

    def _changed(self, code: SparseCode) -> Float[Tensor, "rows d_target"]:
        """What the changed features add."""
        features = torch.tensor(list(self._change), device=code.features.device)
        before = columns_of(code, features, dict_size=self._transcoder.dict_size)
        after = [
            change(column) if callable(change) else torch.full_like(column, change)
            for column, change in zip(before.unbind(dim=1), self._change.values(), strict=True)
        ]
        return (torch.stack(after, dim=1) - before) @ self._transcoder.W_dec[features]


def as_read(
    source: Float[Tensor, "rows d_source"], view: SourceView, norm: Norm | None, device: torch.device
) -> Float[Tensor, "rows d_source"]:
    """A source as the model has it, in a dictionary's view, on its device."""
    source = source.to(device).float()
    if view == "mlp_in":
        return source
    assert norm is not None, "a view of the norm's output needs the norm"
    return norm.undo(source)


def _note(
    seen: dict[int, Seen], layer: int, transcoder: Transcoder, ordinary: Ordinary
) -> Callable[[SparseCode, Tensor], None]:
    """Keeps what a layer's dictionary makes of a pass."""

    def note(code: SparseCode, error: Tensor) -> None:
        seen[layer] = Seen(transcoder, code, ordinary.present, error)

    return note


def _check(transcoder: Transcoder, layer: int, width: int) -> None:
    """Raises MismatchError for a dictionary of another width, or of another layer than it says itself."""
    if (transcoder.d_source, transcoder.d_target) != (width, width):
        what = f"{transcoder.name} maps width {transcoder.d_source} to {transcoder.d_target}; the model's is {width}."
        raise MismatchError(what, remedy="Give a transcoder that was trained on this model.")
    own = transcoder.config.get("layer")
    if own is not None and own != layer:
        remedy = f"Splice it into layer {own}, or drop its config: transcoder.replaced(config={{}})."
        raise MismatchError(f"{transcoder.name} was trained on layer {own}, not {layer}.", remedy=remedy)


def _special_ids(model: Any) -> tuple[int, ...]:
    """The ids of the tokens that never mean text, as far as the model tells."""
    if isinstance(model, LanguageModel):
        return model.tokenizer.special_ids
    named = [getattr(model.config, f"{name}_token_id", None) for name in ("bos", "eos", "pad")]
    ids = {found for entry in named for found in (entry if isinstance(entry, list) else [entry]) if found is not None}
    return tuple(sorted(ids))
