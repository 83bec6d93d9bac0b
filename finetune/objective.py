"""What a step of fine-tuning minimises, and its gradients: the divergence of the spliced model, and the errors.

    kl     mean over ordinary positions of KL(clean || spliced), all layers spliced at once, at the step's own prefix
    fvu    mean over layers of the mean over prefixes p of  SSE_p / (rows * target variance of the cache), on the clean
           pass's rows

Each has a gradient of its own. What the weights are updated by is

    g = g_fvu + kl_weight * (|g_fvu| / |g_kl|) * g_kl

with running means of the two norms over steps, so neither rules the other whatever its units. The clean pass runs the
model once; the spliced pass begins at the first layer's block. Of several processes each has some of the contexts;
losses and gradients are those of all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from cache.order import derive_key
from common.distributed import ALONE, Ranks
from evaluate.spliced.contexts import Contexts
from evaluate.spliced.replace import Host, Ordinary, Replacement, replacing
from evaluate.spliced.splicer import Splicer
from finetune.in_model import InModel
from harvest.model.sites import Norm

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
    dictionaries: InModel
    variances: Mapping[int, float]
    seed: int = 0
    ranks: Ranks = ALONE
    _host: Host = field(init=False)
    _norms: dict[int, Norm] = field(init=False)

    def __post_init__(self) -> None:
        self._host = Host.from_model(self.splicer.model)
        self._norms = {layer: self._host.norm(layer) for layer in self.variances}

    def prefix_of(self, step: int) -> int:
        """The number of the prefix that a step serves."""
        return derive_key(self.seed, _PREFIX, step) % self.dictionaries.prefix_count

    def measure(self, contexts: Contexts, step: int) -> Measured:
        """The losses and their gradients on some contexts: those of all processes, each of which gives its own."""
        rows, clean, before = self._clean(contexts)
        arrays = [array for piece in self.dictionaries.pieces.values() for array in piece.arrays().values()]
        share = self._share(contexts)
        with torch.enable_grad():
            fvu = self._fvu(rows) * share
            fvu_gradients = torch.autograd.grad(fvu, arrays, allow_unused=True)
            prefix = self.prefix_of(step)
            replacements = self.dictionaries.replacements(prefix, self._norms)
            with self.splicer.replaced(replacements), self.splicer.begun(before):
                spliced = self.splicer.run(contexts)
            kl = self._divergence(clean, spliced, contexts) * share
            kl_gradients = torch.autograd.grad(kl, arrays, allow_unused=True)
        losses = torch.stack([loss.detach().to(arrays[0].device) for loss in (kl, fvu)])
        gradients_kl = self._named(kl_gradients)
        gradients_fvu = self._named(fvu_gradients)
        self.ranks.sum_all_([losses, *_flat(gradients_kl), *_flat(gradients_fvu)])
        return Measured(float(losses[0]), float(losses[1]), prefix, gradients_kl, gradients_fvu)

    def _share(self, contexts: Contexts) -> float:
        """Which share of all processes' ordinary positions this one's are."""
        own = int((~self.splicer.kept(contexts.tokens)).sum())
        return own / max(1, self.ranks.total(own, contexts.tokens.device))

    @torch.no_grad()
    def _clean(self, contexts: Contexts) -> tuple[dict[int, tuple[Tensor, Tensor]], Tensor, object]:
        """By layer, source and target of the ordinary rows; the clean log-probabilities; where to begin again."""
        rows: dict[int, tuple[Tensor, Tensor]] = {}

        def keep(layer: int) -> Replacement:
            def replacement(source: Tensor, own: Tensor) -> Tensor:
                rows[layer] = (source, own)
                return own

            return replacement

        seen = {layer: (self.splicer.sites[layer], keep(layer)) for layer in self.variances}
        with replacing(self._host, seen, Ordinary(self.splicer.special_ids)), self.splicer.remembered() as remembered:
            logits = self.splicer.run(contexts)
        return rows, logits.float().log_softmax(dim=-1), remembered.get("out")

    def _fvu(self, rows: Mapping[int, tuple[Tensor, Tensor]]) -> Float[Tensor, ""]:
        """The mean over layers and prefixes, of the rows as the clean model computes them."""
        sources = {layer: source for layer, (source, _) in rows.items()}
        found = self.dictionaries.reconstructions(sources, self._norms)
        errors = [
            (found[layer] - target.to(found[layer].device).float()[:, None]).square().sum(dim=2).mean()
            / self.variances[layer]
            for layer, (_, target) in rows.items()
        ]
        return torch.stack(errors).mean()

    def _divergence(
        self, clean: Float[Tensor, "batch pos vocabulary"], spliced: Tensor, contexts: Contexts
    ) -> Float[Tensor, ""]:
        ordinary = ~self.splicer.kept(contexts.tokens)
        own = clean[ordinary.to(clean.device)]
        log_probabilities = spliced[ordinary.to(spliced.device)].float().log_softmax(dim=-1).to(own.device)
        return (own.exp() * (own - log_probabilities)).sum(dim=1).mean()

    def _named(self, gradients: tuple[Tensor | None, ...]) -> Gradients:
        remaining = iter(gradients)
        named: Gradients = {}
        for layer, piece in self.dictionaries.pieces.items():
            arrays = piece.arrays()
            found = {name: next(remaining) for name in arrays}
            named[layer] = {
                name: torch.zeros_like(arrays[name]) if gradient is None else gradient
                for name, gradient in found.items()
            }
        return named


def _flat(gradients: Gradients) -> list[Tensor]:
    return [gradient for arrays in gradients.values() for gradient in arrays.values()]
