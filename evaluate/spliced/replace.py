"""Replaces sites of a language model while it runs: hooks on Hugging Face's modules, for every architecture and site.

A replacement gets a layer's source and target as the model computes them in this pass, and returns the new target:

    new = replacement(source, own)          rows of ordinary tokens alone; a special token keeps its own target

The model goes on with the new target. For most sites one module's input or output is replaced. ``resid_mid`` also
bypasses the MLP, so the block's output gets the difference too. ``ln2_normalized`` is the norm's output before its gain
and bias.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.errors import UsageError
from harvest.config import Site
from harvest.model.families import check_modules, family_of
from harvest.model.language_model import LanguageModel
from harvest.model.sites import End, Family, Norm, module_at, read_norm

Replacement = Callable[[Float[Tensor, "rows d_source"], Float[Tensor, "rows d_target"]], Float[Tensor, "rows d_target"]]
"""(source, own target), as the model computed them, to the target that it goes on with."""


@dataclass(frozen=True)
class SitePair:
    """What a dictionary reads and what it replaces; the same site twice for an autoencoder."""

    source: Site
    target: Site

    @staticmethod
    def from_facts(facts: Mapping[str, Any], *, location: object = "") -> "SitePair":
        """From a cache's identity or a transcoder's config.json; the MLP's sites if none is named.

        Raises UsageError for a site that no model has.
        """
        source = facts.get("source_site") or "mlp_in"
        target = facts.get("target_site") or "mlp_out"
        for site in (source, target):
            if site not in get_args(Site):
                known = ", ".join(get_args(Site))
                raise UsageError(f"'{site}' is not a site of a language model; known: {known}.", where=location)
        return SitePair(source, target)


MLP = SitePair("mlp_in", "mlp_out")


@dataclass(frozen=True)
class Host:
    """A language model whose sites are known."""

    hugging: Any
    family: Family

    @staticmethod
    def from_model(model: Any) -> "Host":
        """Of Hugging Face's causal language model, or of a ``LanguageModel``.

        Raises UsageError for an architecture whose sites cannot be found, or for a module that is no such model.
        """
        if isinstance(model, LanguageModel):
            return Host(model.hugging, model.family)
        if not (isinstance(model, torch.nn.Module) and hasattr(model, "config") and hasattr(model, "base_model")):
            what = f"{type(model).__name__} is not a causal language model of Hugging Face's."
            raise UsageError(what, remedy="Give what AutoModelForCausalLM.from_pretrained returns.")
        family = family_of(model.config)
        check_modules(model, family)
        return Host(model, family)

    @property
    def layers(self) -> int:
        """How many blocks the model has."""
        return len(module_at(self.hugging, self.family.blocks))

    @property
    def width(self) -> int:
        """Width of the residual stream."""
        return int(self.hugging.config.hidden_size)

    def block(self, layer: int) -> Any:
        """The module of a block."""
        return module_at(self.hugging, self.family.blocks)[layer]

    def norm(self, layer: int) -> Norm:
        """The norm in front of the MLP of ``layer``."""
        return read_norm(module_at(self.block(layer), self.family.norm), self.family, width=self.width)

    def check(self, layer: int, sites: SitePair) -> None:
        """Raises UsageError for a layer or site that the model does not have, or a site that cannot be replaced
        alone."""
        if not 0 <= layer < self.layers:
            raise UsageError(f"The model has layers 0 to {self.layers - 1}; there is no layer {layer}.")
        for site in (sites.source, sites.target):
            if site not in self.family.ends:
                known = ", ".join(self.family.ends)
                raise UsageError(f"This architecture has no {site}; it has {known}.")
        if sites.target == "ln2_normalized" and self.family.parallel:
            raise UsageError(
                "In this architecture the attention reads the norm's output too, so it cannot be replaced."
            )


class Ordinary:
    """The positions of the model's input without a special token: only these are replaced."""

    def __init__(self, special_ids: tuple[int, ...] = ()) -> None:
        self.special_ids = special_ids
        self.present: Bool[Tensor, "batch pos"] = torch.ones(0, 0, dtype=torch.bool)
        """Those of the present pass, or of the last one."""

    def like(self, own: Float[Tensor, "batch pos d"]) -> Bool[Tensor, "batch pos"]:
        """The same on the device of a tensor of the pass."""
        if not self.special_ids:
            self.present = torch.ones(own.shape[:2], dtype=torch.bool, device=own.device)
        return self.present.to(own.device)

    def look(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A hook that stores the model's tokens. Raises UsageError if it gets none."""
        tokens = kwargs.get("input_ids", args[0] if args else None)
        if tokens is None:
            raise UsageError(
                "The model got embeddings, not tokens, so its special tokens are not known.",
                remedy="Give it input_ids, or splice with special_ids=() to replace every position.",
            )
        self.present = ~torch.isin(tokens, torch.tensor(self.special_ids, device=tokens.device))


@contextmanager
def replacing(
    host: Host, replacements: Mapping[int, tuple[SitePair, Replacement]], ordinary: Ordinary
) -> Generator[None]:
    """While the block runs, these layers' targets at ordinary positions are replaced.

    Raises UsageError as ``Host.check``.
    """
    for layer, (sites, _) in replacements.items():
        host.check(layer, sites)
    with ExitStack() as hooks:
        if ordinary.special_ids:
            handle = host.hugging.base_model.register_forward_pre_hook(ordinary.look, with_kwargs=True)
            hooks.callback(handle.remove)
        for layer, (sites, replacement) in replacements.items():
            for handle in _Replaced(host, layer, sites, replacement, ordinary).hooks():
                hooks.callback(handle.remove)
        yield


class _Replaced:
    """One layer's target, replaced: ``hooks`` registers what sees the source and what changes the target."""

    def __init__(self, host: Host, layer: int, sites: SitePair, replacement: Replacement, ordinary: Ordinary) -> None:
        self._block = host.block(layer)
        self._ends = host.family.ends
        self._norm = host.norm(layer)
        self._norm_path = host.family.norm
        self._sites = sites
        self._replacement = replacement
        self._ordinary = ordinary
        self._source: Tensor | None = None
        self._difference: Tensor | None = None

    def hooks(self) -> list[Any]:
        """Handles of all hooks, those that read the source first: hooks of one module run in this order."""
        normalised = self._sites.source == "ln2_normalized"
        seen = _on_end(self._block, self._ends[self._sites.source], self._see_normalised if normalised else self._see)
        return [seen, *self._changes()]

    def _changes(self) -> list[Any]:
        site = self._sites.target
        if site == "ln2_normalized":
            return [module_at(self._block, self._norm_path).register_forward_hook(self._change_norm)]
        if site == "resid_mid":
            at_norm = _on_end(self._block, self._ends[site], self._change_and_note)
            return [at_norm, _on_end(self._block, End("", "out"), self._add_difference)]
        return [_on_end(self._block, self._ends[site], self._changed)]

    def _see(self, tensor: Tensor) -> None:
        self._source = tensor

    def _see_normalised(self, tensor: Tensor) -> None:
        self._source = self._norm.normalise(tensor)

    def _changed(self, own: Float[Tensor, "batch pos d_target"]) -> Float[Tensor, "batch pos d_target"]:
        assert self._source is not None, "every source is computed before its target"
        return rows_replaced(own, self._source, self._replacement, self._ordinary.like(own))

    def _change_norm(self, _: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
        own = self._norm.normalise(args[0])
        # Rows that are not replaced keep the norm's own output to the last bit.
        return torch.where((changed := self._changed(own)) == own, out, self._norm.apply(changed).to(out.dtype))

    def _change_and_note(self, own: Tensor) -> Tensor:
        changed = self._changed(own)
        self._difference = changed - own
        return changed

    def _add_difference(self, out: Tensor) -> Tensor:
        assert self._difference is not None, "the norm runs before its block ends"
        return out + self._difference.to(out.device)


def rows_replaced(
    own: Float[Tensor, "batch pos d_target"],
    source: Float[Tensor, "batch pos d_source"],
    replacement: Replacement,
    ordinary: Bool[Tensor, "batch pos"],
) -> Float[Tensor, "batch pos d_target"]:
    """The target with its ordinary rows replaced, in its own dtype and on its device, which is also that of
    ``ordinary``."""
    new = replacement(source[ordinary.to(source.device)], own[ordinary])
    changed = own.clone()
    changed[ordinary] = new.to(own.device, own.dtype)
    return changed


def _on_end(block: Any, end: End, do: Callable[[Tensor], Tensor | None]) -> Any:
    """Hook a module's input or output with ``do``, which gets the tensor and may return another one."""
    module = module_at(block, end.path)

    def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        new = do(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    def after(_: Any, __: Any, output: Any) -> Any:
        new = do(output[0] if isinstance(output, tuple) else output)
        if new is None:
            return None
        return (new, *output[1:]) if isinstance(output, tuple) else new

    if end.direction == "in":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(after)
