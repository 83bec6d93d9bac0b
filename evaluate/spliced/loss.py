"""What the language model loses when dictionaries stand in for what they imitate: cross-entropy, KL, its first choice.

On held-out contexts, rebuilt from the cache's tokens, the target of one layer, or of several at once, is replaced at
every position whose token is not special (special positions keep their own values, whatever replaces the rest):

    spliced, prefix p    y_p(source), the source being what the model computes on this very pass
    zero                 0
    mean                 mu, the mean target of the evaluated held-out rows

and the next token is predicted. Over positions that are not special and have a next token in their context:

    delta       = CE(replaced) - CE(clean)                                  nats a token; the number to quote
    recovered_a = (CE(a) - CE(spliced)) / (CE(a) - CE(clean))               a = zero or mean ablation
    kl          = mean KL(clean || replaced)
    top1        = share of predictions whose likeliest token is the clean one's

Of several layers, prefix p means the prefix of that number in each. Intervals resample documents, with the same weights
as those of the FVU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader
from evaluate.config import EvaluateSettings
from evaluate.metrics.bootstrap import DocumentSums, intervals, sums_by_document
from evaluate.metrics.inputs import Replicates
from evaluate.metrics.metric import State, numbered
from evaluate.replay import Replay
from evaluate.spliced.contexts import Contexts, held_out_contexts
from evaluate.spliced.replace import Replacement
from evaluate.spliced.splice import StandIn
from evaluate.spliced.splicer import Splicer
from transcoder.transcoder import Transcoder

_BATCH_BYTES = {"cpu": 1 << 24, "cuda": 1 << 26}
"""Of float32 log-probabilities that one pass may yield: decides how many contexts go through the model at once.

Larger arrays than these a CPU's allocator takes from the system and gives back each time, page by page.
"""


@dataclass(frozen=True)
class SplicedModel:
    """Measures dictionaries in a language model, on the first held-out contexts of the cache that ``reader`` reads.

    Dictionaries of several layers are of caches with the same rows.
    """

    splicer: Splicer
    reader: CacheReader
    replay: Replay
    settings: EvaluateSettings

    def measure(self, dictionary: Transcoder, mean: Float[Tensor, " d_target"]) -> tuple[dict[str, Any], Replicates]:
        """For the reader's layer: the ``language_model`` fields, and the rise in cross-entropy of every prefix;
        ``mean`` is mu."""
        layer = self.reader.identity["layer"]
        fields, delta = self.measure_layers({layer: dictionary}, {layer: mean})
        prefixes = dictionary.prefixes
        fields["per_prefix"] = [
            {"prefix": prefix, **found} for prefix, found in zip(prefixes, fields["per_prefix"], strict=True)
        ]
        return fields, delta

    def measure_layers(
        self, dictionaries: Mapping[int, Transcoder], means: Mapping[int, Float[Tensor, " d_target"]]
    ) -> tuple[dict[str, Any], Replicates]:
        """The same for dictionaries by layer, all in the model at once; they must have the same number of prefixes."""
        name = " and ".join(dict.fromkeys(dictionary.name for dictionary in dictionaries.values()))
        return self.measure_replacements(self._replacements(dictionaries, means), name=name)

    def measure_replacements(
        self, replacements: list[dict[int, Replacement]], *, name: str
    ) -> tuple[dict[str, Any], Replicates]:
        """The same for replacements by layer: zeros, means, then every prefix of the dictionary ``name``."""
        device = self.splicer.model.device
        sums = _sums(len(replacements), self.settings, device)
        state = sums.start()
        contexts = self._contexts()
        progress = self.replay.progress
        total = sum(len(batch.tokens) for batch in contexts)
        progress.begin(f"splice {name} into the language model", total=total, unit="contexts")
        for batch in contexts:
            state = sums.combine(state, _measure(self.splicer, batch, replacements, sums))
            progress.advance(len(batch.tokens))
        progress.end()
        state = self.replay.ranks.merged(state, sums.combine)
        return _fields(sums.finish(state))

    def _contexts(self) -> list[Contexts]:
        """This process's share."""
        device = self.splicer.model.device
        batch_tokens = _BATCH_BYTES[device.type] // (4 * self.splicer.vocabulary)
        contexts = held_out_contexts(
            self.reader, tokens=self.settings.lm_tokens, batch_tokens=batch_tokens, device=str(device)
        )
        return contexts[self.replay.ranks.rank :: self.replay.ranks.world]

    def _replacements(
        self, dictionaries: Mapping[int, Transcoder], means: Mapping[int, Float[Tensor, " d_target"]]
    ) -> list[dict[int, Replacement]]:
        """Zero, mean, and every prefix; each by layer."""
        model = self.splicer.model
        count = min(len(dictionary.prefixes) for dictionary in dictionaries.values())
        spliced: list[dict[int, Replacement]] = [
            {
                layer: StandIn(dictionary.truncate(dictionary.prefixes[index]), model.norm(layer))
                for layer, dictionary in dictionaries.items()
            }
            for index in range(count)
        ]
        return [*ablations(means), *spliced]


def ablations(means: Mapping[int, Float[Tensor, " d_target"]]) -> list[dict[int, Replacement]]:
    """The first two replacements for ``measure_replacements``, by layer: a target of zeros, and the mean target."""
    return [dict.fromkeys(means, zero), {layer: constant(mean) for layer, mean in means.items()}]


def zero(_: Tensor, own: Tensor) -> Tensor:
    """A replacement that removes the target."""
    return torch.zeros_like(own)


def constant(mean: Float[Tensor, " d_target"]) -> Replacement:
    """A replacement by the same target everywhere."""
    return lambda _, own: mean.to(own.device).expand(len(own), -1)


def _sums(replacements: int, settings: EvaluateSettings, device: torch.device) -> DocumentSums:
    of_each = dict.fromkeys(("replaced", "kl", "top1"), (replacements,))
    widths = {"predictions": (), "clean": (), **of_each}
    return DocumentSums(widths, settings.bootstrap, settings.seed, device)


def _measure(
    splicer: Splicer, contexts: Contexts, replacements: list[dict[int, Replacement]], sums: DocumentSums
) -> State:
    """Sums over the predictions of some contexts, document by document."""
    counted = ~splicer.kept(contexts.tokens)[:, :-1]
    following = contexts.tokens[:, 1:][counted][:, None]
    clean, before = splicer.clean(contexts)
    clean = clean[:, :-1][counted]
    probability = clean.exp()
    losses: list[Tensor] = []
    divergences: list[Tensor] = []
    agreements: list[Tensor] = []
    likeliest = clean.argmax(dim=1)
    for replacement in replacements:
        replaced = splicer.log_probabilities(contexts, replacement, before=before)[:, :-1][counted]
        losses.append(-replaced.gather(1, following)[:, 0])
        divergences.append((probability * (clean - replaced)).sum(dim=1))
        agreements.append((replaced.argmax(dim=1) == likeliest).float())

    documents, document_index = numbered(contexts.document[:, :-1][counted])
    values = {
        "predictions": torch.ones(len(following), device=clean.device),
        "clean": -clean.gather(1, following)[:, 0],
        "replaced": torch.stack(losses, dim=1),
        "kl": torch.stack(divergences, dim=1),
        "top1": torch.stack(agreements, dim=1),
    }
    return sums.of_batch(documents, sums_by_document(values, document_index, documents=len(documents)))


def _fields(sums: State) -> tuple[dict[str, Any], Replicates]:
    count = sums["predictions"][:, None]
    clean = (sums["clean"] / count[:, 0]).cpu().numpy()
    replaced, kl, top1 = ((sums[name] / count).cpu().numpy() for name in ("replaced", "kl", "top1"))
    zero = replaced[:, 0]
    mean = replaced[:, 1]
    delta = replaced - clean[:, None]
    bounds = intervals(delta[1:])

    def found(index: int) -> dict[str, Any]:
        return {
            "cross_entropy": float(replaced[0, index]),
            "delta": float(delta[0, index]),
            "kl": float(kl[0, index]),
            "top1": float(top1[0, index]),
        }

    fields = {
        "tokens": round(float(count[0, 0])),
        "clean": float(clean[0]),
        "zero": found(0),
        "mean": found(1),
        "per_prefix": [
            {
                **found(index),
                "delta_interval": bounds[index] if bounds else None,
                "recovered_zero": _recovered(zero[0], replaced[0, index], clean[0]),
                "recovered_mean": _recovered(mean[0], replaced[0, index], clean[0]),
            }
            for index in range(2, replaced.shape[1])
        ],
    }
    return fields, delta[:, 2:]


def _recovered(ablated: float, replaced: float, clean: float) -> float | None:
    """The share of the ablation's loss that is recovered; None if the ablation costs nothing."""
    return float((ablated - replaced) / (ablated - clean)) if ablated > clean else None
