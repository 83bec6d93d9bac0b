"""What a step of fine-tuning minimises, and its gradients: the divergence of the spliced model, and the errors.

    kl     mean over ordinary positions of KL(clean || spliced), all layers spliced at once, at the step's own prefix
    fvu    mean over layers of the mean over prefixes p of  SSE_p / (rows * target variance of the cache)

Each has a gradient of its own. What the weights are updated by is

    g = g_fvu + kl_weight * (|g_fvu| / |g_kl|) * g_kl

with running means of the two norms over steps, so neither rules the other whatever its units. The clean pass runs the
model once; the spliced pass begins at the first layer's block.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from cache.order import derive_key
from evaluate.spliced.contexts import Contexts
from evaluate.spliced.replace import Host, Ordinary, Replacement, replacing
from evaluate.spliced.splice import StandIn
from evaluate.spliced.splicer import Splicer
from transcoder.transcoder import Transcoder

Gradients = dict[int, dict[str, Tensor]]
"""By layer and array."""

_PREFIX = 12
"""Names this use of the seed."""
_MEMORY = 0.98
"""How much of the running means of the norms a step keeps: of the order of fifty steps."""


@dataclass
class Balance:
    """Running means of the norms of both gradients; part of a run's state."""

    kl: float = 0.0
    fvu: float = 0.0
    steps: int = 0

    def add(self, *, kl: float, fvu: float) -> float:
        """Take in a step's norms; what to multiply the gradient of the KL divergence by, so that it weighs alike."""
        self.steps += 1
        # Plain means at first: a running mean that begins at its first value would follow that for long.
        keep = min(_MEMORY, 1 - 1 / self.steps)
        self.kl = keep * self.kl + (1 - keep) * kl
        self.fvu = keep * self.fvu + (1 - keep) * fvu
        return self.fvu / self.kl if self.kl > 0 else 0.0


@dataclass(frozen=True)
class Measured:
    """One step's losses, by prefix where they have one, and gradients in the arrays' own units."""

    kl: float
    fvu: float
    prefix: int
    gradients_kl: Gradients
    gradients_fvu: Gradients


@dataclass
class Objective:
    """Measures steps. ``variances`` are the target's, summed over dimensions, by layer."""

    splicer: Splicer
    transcoders: Mapping[int, Transcoder]
    variances: Mapping[int, float]
    seed: int = 0
    _host: Host = field(init=False)

    def __post_init__(self) -> None:
        self._host = Host.of(self.splicer.model)

    def prefix_of(self, step: int) -> int:
        """The number of the prefix that a step serves."""
        count = min(len(transcoder.prefixes) for transcoder in self.transcoders.values())
        return derive_key(self.seed, _PREFIX, step) % count

    def measure(self, contexts: Contexts, step: int) -> Measured:
        """The losses and their gradients on some contexts."""
        sides, clean, before = self._clean(contexts)
        arrays = [array for transcoder in self.transcoders.values() for array in transcoder.arrays().values()]
        with torch.enable_grad():
            fvu = torch.stack([self._fvu(layer, *sides[layer]) for layer in self.transcoders]).mean()
            of_fvu = torch.autograd.grad(fvu, arrays, allow_unused=True)
            prefix = self.prefix_of(step)
            with self.splicer.replaced(self._replacements(prefix)), self.splicer.begun(before):
                spliced = self.splicer.run(contexts)
            kl = self._divergence(clean, spliced, contexts)
            of_kl = torch.autograd.grad(kl, arrays, allow_unused=True)
        return Measured(float(kl.detach()), float(fvu.detach()), prefix, self._named(of_kl), self._named(of_fvu))

    @torch.no_grad()
    def _clean(self, contexts: Contexts) -> tuple[dict[int, tuple[Tensor, Tensor]], Tensor, object]:
        """By layer, source and target of the ordinary rows; the clean log-probabilities; where to begin again."""
        sides: dict[int, tuple[Tensor, Tensor]] = {}

        def keep(layer: int) -> Replacement:
            def replacement(source: Tensor, own: Tensor) -> Tensor:
                sides[layer] = (source, own)
                return own

            return replacement

        seen = {layer: (self.splicer.places[layer], keep(layer)) for layer in self.transcoders}
        with replacing(self._host, seen, Ordinary(self.splicer.special_ids)), self.splicer.remembered() as remembered:
            logits = self.splicer.run(contexts)
        return sides, logits.float().log_softmax(dim=-1), remembered.get("out")

    def _replacements(self, prefix: int) -> dict[int, Replacement]:
        return {
            layer: StandIn(transcoder.truncate(transcoder.prefixes[prefix]), self._host.norm(layer))
            for layer, transcoder in self.transcoders.items()
        }

    def _fvu(
        self, layer: int, source: Float[Tensor, "rows d_source"], target: Float[Tensor, "rows d_target"]
    ) -> Float[Tensor, ""]:
        """Of every prefix, in mean; of the rows as the clean model computes them."""
        transcoder = self.transcoders[layer]
        seen = StandIn(transcoder, self._host.norm(layer)).as_read(source)
        errors = transcoder.reconstructions(seen) - target.to(seen.device).float()[:, None]
        return errors.square().sum(dim=2).mean() / self.variances[layer]

    def _divergence(
        self, clean: Float[Tensor, "batch pos vocabulary"], spliced: Tensor, contexts: Contexts
    ) -> Float[Tensor, ""]:
        ordinary = ~self.splicer.kept(contexts.tokens)
        own = clean[ordinary.to(clean.device)]
        other = spliced[ordinary.to(spliced.device)].float().log_softmax(dim=-1).to(own.device)
        return (own.exp() * (own - other)).sum(dim=1).mean()

    def _named(self, gradients: tuple[Tensor | None, ...]) -> Gradients:
        remaining = iter(gradients)
        named: Gradients = {}
        for layer, transcoder in self.transcoders.items():
            arrays = transcoder.arrays()
            found = {name: next(remaining) for name in arrays}
            named[layer] = {
                name: torch.zeros_like(arrays[name]) if gradient is None else gradient
                for name, gradient in found.items()
            }
        return named
