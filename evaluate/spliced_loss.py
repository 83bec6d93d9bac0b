"""What the language model loses when a dictionary stands in for its MLP: cross-entropy and KL, prefix by prefix.

On held-out contexts, rebuilt from the cache's tokens, the layer's MLP output is replaced at every position whose token
is not special (special positions keep their own values, whatever replaces the rest):

    spliced, prefix p    y_p(source), the source being what the model computes on this very pass
    zero                 0
    mean                 mu, the mean target of the evaluated held-out rows

and the next token is predicted. Over positions that are not special and have a next token in their context:

    delta       = CE(replaced) - CE(clean)                                  nats a token; the number to quote
    recovered_a = (CE(a) - CE(spliced)) / (CE(a) - CE(clean))               a = zero or mean ablation
    kl          = mean KL(clean || replaced)

Intervals resample documents, with the same weights as those of the FVU.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader
from evaluate.config import EvaluateSettings
from evaluate.contexts import Contexts, held_out_contexts
from evaluate.metrics.bootstrap import DocumentSums, intervals, sums_by_document
from evaluate.metrics.inputs import Replicates
from evaluate.metrics.metric import State, numbered
from evaluate.replay import Replay
from evaluate.splice import Replacement, Splicer
from transcoder.transcoder import Transcoder

_BATCH_BYTES = {"cpu": 1 << 24, "cuda": 1 << 26}
"""Of float32 log-probabilities that one pass may yield: decides how many contexts go through the model at once.

Larger arrays than these a CPU's allocator takes from the system and gives back each time, page by page.
"""


@dataclass(frozen=True)
class SplicedModel:
    """Measures dictionaries in a language model, on the first held-out contexts of its cache."""

    splicer: Splicer
    reader: CacheReader
    replay: Replay
    settings: EvaluateSettings

    def measure(self, dictionary: Transcoder, mean: Float[Tensor, " d_target"]) -> tuple[dict[str, Any], Replicates]:
        """The ``language_model`` fields, and the rise in cross-entropy of every prefix; ``mean`` is mu."""
        device = self.splicer.model.device
        replacements = _replacements(dictionary, self.reader, mean)
        sums = _sums(len(replacements), self.settings, device)
        state = sums.start()
        contexts = self._contexts()
        progress = self.replay.progress
        total = sum(len(batch.tokens) for batch in contexts)
        progress.begin(f"splice {dictionary.name} into the language model", total=total, unit="contexts")
        for batch in contexts:
            state = sums.combine(state, _measure(self.splicer, batch, replacements, sums))
            progress.advance(len(batch.tokens))
        progress.end()
        state = self.replay.ranks.merged(state, sums.combine)
        return _fields(sums.finish(state), dictionary.prefixes)

    def _contexts(self) -> list[Contexts]:
        """This process's share."""
        device = self.splicer.model.device
        batch_tokens = _BATCH_BYTES[device.type] // (4 * self.splicer.vocabulary)
        contexts = held_out_contexts(
            self.reader, tokens=self.settings.lm_tokens, batch_tokens=batch_tokens, device=str(device)
        )
        return contexts[self.replay.ranks.rank :: self.replay.ranks.world]


def _replacements(dictionary: Transcoder, reader: CacheReader, mean: Float[Tensor, " d_target"]) -> list[Replacement]:
    """Zero, mean, and every prefix."""

    def prefix(index: int) -> Replacement:
        def reconstruct(source: Tensor) -> Tensor:
            seen = reader.as_view(source.cpu(), dictionary.source_view).to(source.device).float()
            return dictionary.reconstruct(dictionary.sparse_code(seen), seen)[:, index]

        return reconstruct

    return [
        lambda source: torch.zeros(len(source), len(mean), device=source.device),
        lambda source: mean.to(source.device).expand(len(source), -1),
        *(prefix(index) for index in range(len(dictionary.prefixes))),
    ]


def _sums(replacements: int, settings: EvaluateSettings, device: torch.device) -> DocumentSums:
    widths = {"predictions": (), "clean": (), "replaced": (replacements,), "kl": (replacements,)}
    return DocumentSums(widths, settings.bootstrap, settings.seed, device)


def _measure(splicer: Splicer, contexts: Contexts, replacements: list[Replacement], sums: DocumentSums) -> State:
    """Sums over the predictions of some contexts, document by document."""
    counted = ~splicer.kept(contexts.tokens)[:, :-1]
    following = contexts.tokens[:, 1:][counted][:, None]
    clean, before = splicer.clean(contexts)
    clean = clean[:, :-1][counted]
    probability = clean.exp()
    losses: list[Tensor] = []
    divergences: list[Tensor] = []
    for replacement in replacements:
        replaced = splicer.log_probabilities(contexts, replacement, before=before)[:, :-1][counted]
        losses.append(-replaced.gather(1, following)[:, 0])
        divergences.append((probability * (clean - replaced)).sum(dim=1))

    documents, document_index = numbered(contexts.document[:, :-1][counted])
    values = {
        "predictions": torch.ones(len(following), device=clean.device),
        "clean": -clean.gather(1, following)[:, 0],
        "replaced": torch.stack(losses, dim=1),
        "kl": torch.stack(divergences, dim=1),
    }
    return sums.of_batch(documents, sums_by_document(values, document_index, documents=len(documents)))


def _fields(sums: State, prefixes: tuple[int, ...]) -> tuple[dict[str, Any], Replicates]:
    count = sums["predictions"][:, None]
    clean = (sums["clean"] / count[:, 0]).cpu().numpy()
    replaced = (sums["replaced"] / count).cpu().numpy()
    kl = (sums["kl"] / count).cpu().numpy()
    zero = replaced[:, 0]
    mean = replaced[:, 1]
    delta = replaced - clean[:, None]
    bounds = intervals(delta[1:])
    ablated = [{"cross_entropy": float(loss[0]), "delta": float((loss - clean)[0])} for loss in (zero, mean)]
    fields = {
        "tokens": round(float(count[0, 0])),
        "clean": float(clean[0]),
        "zero": ablated[0] | {"kl": float(kl[0, 0])},
        "mean": ablated[1] | {"kl": float(kl[0, 1])},
        "per_prefix": [
            {
                "prefix": prefix,
                "cross_entropy": float(replaced[0, index]),
                "delta": float(delta[0, index]),
                "delta_interval": bounds[index] if bounds else None,
                "recovered_zero": _recovered(zero[0], replaced[0, index], clean[0]),
                "recovered_mean": _recovered(mean[0], replaced[0, index], clean[0]),
                "kl": float(kl[0, index]),
            }
            for index, prefix in enumerate(prefixes, start=2)
        ],
    }
    return fields, delta[:, 2:]


def _recovered(ablated: float, replaced: float, clean: float) -> float | None:
    """Null where the ablation costs nothing, and there is nothing to recover."""
    return float((ablated - replaced) / (ablated - clean)) if ablated > clean else None
