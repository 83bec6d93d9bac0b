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

Intervals resample documents, with the same weights as those of the FVU. The blocks before the layer see no replacement:
they run once, and every replaced pass begins with what they put out.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cache.reader import CacheReader
from common.errors import MismatchError, UsageError
from evaluate.contexts import Contexts, held_out_contexts
from evaluate.metrics.fvu import bootstrap_weights, intervals, weighted_sums_by
from evaluate.metrics.metric import State, add, numbered
from evaluate.replay import Replay
from evaluate.together import merged
from harvest.model.language_model import LanguageModel
from harvest.model.sites import module_at
from transcoder.dictionary import Dictionary

Replacement = Callable[[Tensor], Tensor]
"""Sources (rows, d_source), as the model computed them, to what the MLP is to put out at those rows."""


_BATCH_BYTES = {"cpu": 1 << 24, "cuda": 1 << 26}
"""Of float32 log-probabilities that one pass may yield: decides how many contexts go through the model at once.

Larger arrays than these a CPU's allocator takes from the system and gives back each time, page by page.
"""


@dataclass(frozen=True)
class Splicer:
    """A model whose MLP output at one layer can be replaced."""

    model: LanguageModel
    layer: int
    special_ids: tuple[int, ...]

    @property
    def vocabulary(self) -> int:
        return int(self.model.hugging.config.vocab_size)

    @torch.inference_mode()
    def clean(self, contexts: Contexts) -> tuple[Float[Tensor, "batch pos vocabulary"], Any]:
        """The model's own log-probabilities, and what the block before the layer put out."""
        seen: dict[str, Any] = {}

        def remember(_module: Any, _arguments: Any, out: Any) -> None:
            seen["out"] = out

        handles = [block.register_forward_hook(remember) for block in self._before[-1:]]
        try:
            return self.log_probabilities(contexts), seen.get("out")
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def log_probabilities(
        self, contexts: Contexts, replacement: Replacement | None = None, *, before: Any = None
    ) -> Float[Tensor, "batch pos vocabulary"]:
        """Of the next token at every position, in float32; the model's own when nothing is replaced.

        ``before`` is what the block before the layer puts out on these contexts, where that is known.
        """
        with self._replaced(replacement, self.kept(contexts.tokens)), self._begun(before):
            said = self.model.hugging(input_ids=contexts.tokens, position_ids=contexts.positions, use_cache=False)
        return said.logits.float().log_softmax(dim=-1)

    def kept(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Where a special token stands, and the MLP keeps its own output."""
        return torch.isin(tokens, torch.tensor(self.special_ids, device=tokens.device))

    @property
    def _before(self) -> list[Any]:
        return [self.model.block(layer) for layer in range(self.layer)]

    @contextmanager
    def _begun(self, before: Any) -> Generator[None]:
        """No block before the layer computes anything; nothing changes where ``before`` is None."""

        def skip(*_: Any, **__: Any) -> Any:
            return before

        blocks = [] if before is None else self._before
        own = [vars(block).get("forward") for block in blocks]  # that of a block which fetches from another card
        for block in blocks:
            block.forward = skip
        try:
            yield
        finally:
            for block, forward in zip(blocks, own, strict=True):
                del block.forward
                if forward is not None:
                    block.forward = forward

    @contextmanager
    def _replaced(self, replacement: Replacement | None, kept: Bool[Tensor, "batch pos"]) -> Generator[None]:
        if replacement is None:
            yield
            return
        family, block = self.model.family, self.model.block(self.layer)
        seen: dict[str, Tensor] = {}

        def before(_: Any, args: tuple[Any, ...]) -> None:
            seen["source"] = args[0]

        def after(_: Any, __: Any, output: Tensor) -> Tensor:
            replaced, there = output.clone(), ~kept.to(output.device)
            source = seen["source"][there].to(self.model.device)
            replaced[there] = replacement(source).to(device=output.device, dtype=output.dtype)
            return replaced

        handles = [
            module_at(block, family.mlp).register_forward_pre_hook(before),
            module_at(block, family.ends["mlp_out"].path).register_forward_hook(after),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def spliced(
    replay: Replay,
    dictionary: Dictionary,
    *,
    splicer: Splicer,
    reader: CacheReader,
    mean: Float[Tensor, " d_target"],
    tokens: int,
    replicates: int,
    seed: int,
) -> dict[str, Any]:
    """The ``language_model`` part of metrics.json, over the first ``tokens`` held-out tokens (whole contexts)."""
    device = splicer.model.device
    most = _BATCH_BYTES[device.type] // (4 * splicer.vocabulary)
    contexts = held_out_contexts(reader, tokens=tokens, batch_tokens=most, device=str(device))
    replacements = _replacements(dictionary, reader, mean)
    state = _start(len(replacements), replicates, device)
    mine = contexts[replay.ranks.rank :: replay.ranks.world]
    total = sum(len(batch.tokens) for batch in mine)
    replay.progress.begin("splice into the language model", total=total, unit="contexts")
    for batch in mine:
        add(state, _measure(splicer, batch, replacements, replicates=replicates, seed=seed))
        replay.progress.advance(len(batch.tokens))
    replay.progress.end()
    return _said(merged(add, state, replay.ranks), dictionary.prefixes)


def check_model(model: LanguageModel, reader: CacheReader) -> None:
    """The model must be the one that made the cache, at sites that a splice knows. Raises MismatchError, UsageError."""
    identity = reader.identity
    for name, ours in (("weights_hash", model.source.weights_hash), ("tokenizer_hash", model.tokenizer.hash)):
        if identity.get(name) != ours:
            what = f"the language model is not the one that made the cache: {name} is {ours}, not {identity.get(name)}"
            raise MismatchError(what, where=model.source.folder)
    sites = (identity.get("source_site"), identity.get("target_site"))
    if sites != ("mlp_in", "mlp_out"):
        what = f"only mlp_in -> mlp_out can be spliced into the model; this cache is {sites[0]} -> {sites[1]}"
        raise UsageError(what, where=reader.path, remedy="Leave out --lm")


def _replacements(dictionary: Dictionary, reader: CacheReader, mean: Float[Tensor, " d_target"]) -> list[Replacement]:
    """Zero, mean, and every prefix."""

    def prefix(place: int) -> Replacement:
        def reconstruct(source: Tensor) -> Tensor:
            seen = reader.as_view(source.cpu(), dictionary.source_view).to(source.device).float()
            return dictionary.reconstruct(dictionary.active(seen), seen)[:, place]

        return reconstruct

    return [
        lambda source: torch.zeros(len(source), len(mean), device=source.device),
        lambda source: mean.expand(len(source), -1),
        *(prefix(place) for place in range(len(dictionary.prefixes))),
    ]


def _start(replacements: int, replicates: int, device: torch.device) -> State:
    widths = {"N": (), "clean": (), "replaced": (replacements,), "kl": (replacements,)}
    return {
        name: torch.zeros(1 + replicates, *width, dtype=torch.float64, device=device) for name, width in widths.items()
    }


def _measure(
    splicer: Splicer, contexts: Contexts, replacements: list[Replacement], *, replicates: int, seed: int
) -> State:
    """Sums over the predictions of some contexts, document by document, then weighted."""
    counted = ~splicer.kept(contexts.tokens)[:, :-1]
    following = contexts.tokens[:, 1:][counted][:, None]
    clean, before = splicer.clean(contexts)
    clean = clean[:, :-1][counted]
    probability = clean.exp()
    losses: list[Tensor] = []
    divergences: list[Tensor] = []
    for replacement in replacements:
        said = splicer.log_probabilities(contexts, replacement, before=before)[:, :-1][counted]
        losses.append(-said.gather(1, following)[:, 0])
        divergences.append((probability * (clean - said)).sum(dim=1))
    documents, place = numbered(contexts.document[:, :-1][counted])
    each = {
        "N": torch.ones(len(following), device=clean.device),
        "clean": -clean.gather(1, following)[:, 0],
        "replaced": torch.stack(losses, dim=1),
        "kl": torch.stack(divergences, dim=1),
    }
    weights = bootstrap_weights(documents, replicates=replicates, seed=seed).to(clean.device)
    return weighted_sums_by(each, place, weights=weights)


def _said(state: State, prefixes: tuple[int, ...]) -> dict[str, Any]:
    count = state["N"][:, None]
    clean = (state["clean"] / count[:, 0]).cpu().numpy()
    replaced, kl = ((state[name] / count).cpu().numpy() for name in ("replaced", "kl"))
    zero, mean = replaced[:, 0], replaced[:, 1]
    delta = replaced - clean[:, None]
    bounds = intervals(delta[1:])
    ablated = [{"cross_entropy": float(loss[0]), "delta": float((loss - clean)[0])} for loss in (zero, mean)]
    return {
        "tokens": round(float(count[0, 0])),
        "clean": float(clean[0]),
        "zero": ablated[0] | {"kl": float(kl[0, 0])},
        "mean": ablated[1] | {"kl": float(kl[0, 1])},
        "per_prefix": [
            {
                "prefix": prefix,
                "cross_entropy": float(replaced[0, place]),
                "delta": float(delta[0, place]),
                "delta_interval": bounds[place] if bounds else None,
                "recovered_zero": _recovered(zero[0], replaced[0, place], clean[0]),
                "recovered_mean": _recovered(mean[0], replaced[0, place], clean[0]),
                "kl": float(kl[0, place]),
            }
            for place, prefix in enumerate(prefixes, start=2)
        ],
    }


def _recovered(ablated: float, replaced: float, clean: float) -> float | None:
    """Null where the ablation costs nothing, and there is nothing to recover."""
    return float((ablated - replaced) / (ablated - clean)) if ablated > clean else None
