"""A language model in which sites can be replaced, for measuring: many replacements on the same contexts.

The blocks before the first replaced layer do not change: they run once, and every pass starts from their output.
"""

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cache.reader import CacheReader
from common.errors import MismatchError
from evaluate.spliced.contexts import Contexts
from evaluate.spliced.replace import Host, Ordinary, Replacement, SitePair, replacing
from harvest.model.language_model import LanguageModel, load_model


@dataclass(frozen=True)
class Splicer:
    """A model whose targets at ``sites``, by layer, can be replaced."""

    model: LanguageModel
    sites: Mapping[int, SitePair]
    special_ids: tuple[int, ...]

    @property
    def vocabulary(self) -> int:
        """How many tokens the model predicts."""
        return int(self.model.hugging.config.vocab_size)

    @torch.inference_mode()
    def clean(self, contexts: Contexts) -> tuple[Float[Tensor, "batch pos vocabulary"], Any]:
        """The model's own log-probabilities, and what the block before the first layer put out."""
        with self.remembered() as seen:
            return self.log_probabilities(contexts), seen.get("out")

    @torch.inference_mode()
    def log_probabilities(
        self, contexts: Contexts, replacements: Mapping[int, Replacement] | None = None, *, before: Any = None
    ) -> Float[Tensor, "batch pos vocabulary"]:
        """Of the next token at every position, in float32; the model's own when nothing is replaced.

        ``before`` is what the block before the first layer puts out on these contexts, where that is known.
        """
        with self.replaced(replacements or {}), self.begun(before):
            return self.run(contexts).float().log_softmax(dim=-1)

    def run(self, contexts: Contexts) -> Float[Tensor, "batch pos vocabulary"]:
        """The model's logits, differentiable."""
        hugging = self.model.hugging
        return hugging(input_ids=contexts.tokens, position_ids=contexts.positions, use_cache=False).logits

    def replaced(self, replacements: Mapping[int, Replacement]) -> AbstractContextManager[None]:
        """A context in which these layers' targets are replaced."""
        placed = {layer: (self.sites[layer], replacement) for layer, replacement in replacements.items()}
        return replacing(Host.from_model(self.model), placed, Ordinary(self.special_ids))

    def kept(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """The positions of special tokens, where the model keeps its own values."""
        return torch.isin(tokens, torch.tensor(self.special_ids, device=tokens.device))

    @contextmanager
    def remembered(self) -> Generator[dict[str, Any]]:
        """While the block runs, the output of the layer before the first replaced one is stored under ``out``."""
        seen: dict[str, Any] = {}

        def remember(_module: Any, _arguments: Any, out: Any) -> None:
            seen["out"] = out

        handles = [block.register_forward_hook(remember) for block in self._before[-1:]]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def begun(self, before: Any) -> Generator[None]:
        """While the block runs, the layers before the first replaced one compute nothing; no effect if ``before`` is
        None."""

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

    @property
    def _before(self) -> list[Any]:
        return [self.model.block(layer) for layer in range(min(self.sites))]


def open_splicer(model: str, readers: Mapping[int, CacheReader], *, device: str) -> Splicer:
    """The language model of some caches, by layer, loaded as it was harvested. Raises MismatchError for another one."""
    first = next(iter(readers.values()))
    identity = first.identity
    loaded = load_model(
        model, device=device, dtype=identity.get("model_dtype", "auto"), revision=identity.get("model_revision")
    )
    for reader in readers.values():
        check_model(loaded, reader)
    sites = {layer: SitePair.from_facts(reader.identity) for layer, reader in readers.items()}
    return Splicer(loaded, sites, tuple(first.special_ids))


def check_model(model: LanguageModel, reader: CacheReader) -> None:
    """Raises MismatchError if the model is not the one that made the cache, UsageError if it does not have the
    sites."""
    identity = reader.identity
    for name, loaded_hash in (("weights_hash", model.source.weights_hash), ("tokenizer_hash", model.tokenizer.hash)):
        if identity.get(name) != loaded_hash:
            what = f"The language model is not the one that made the cache: its {name} is {loaded_hash}, "
            what += f"the cache has {identity.get(name)}."
            raise MismatchError(what, where=model.source.folder)
    Host.from_model(model).check(identity["layer"], SitePair.from_facts(identity, location=reader.path))
