"""A language model whose MLP output at one layer can be replaced.

The blocks before the layer see no replacement: they run once, and every replaced pass begins with what they put out.
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
from evaluate.contexts import Contexts
from harvest.model.language_model import LanguageModel
from harvest.model.sites import module_at

Replacement = Callable[[Tensor], Tensor]
"""Sources (rows, d_source), as the model computed them, to what the MLP is to put out at those rows."""


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
            output = self.model.hugging(input_ids=contexts.tokens, position_ids=contexts.positions, use_cache=False)
        return output.logits.float().log_softmax(dim=-1)

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
        family = self.model.family
        block = self.model.block(self.layer)
        seen: dict[str, Tensor] = {}

        def before(_: Any, args: tuple[Any, ...]) -> None:
            seen["source"] = args[0]

        def after(_: Any, __: Any, output: Tensor) -> Tensor:
            replaced = output.clone()
            ordinary = ~kept.to(output.device)
            source = seen["source"][ordinary].to(self.model.device)
            replaced[ordinary] = replacement(source).to(device=output.device, dtype=output.dtype)
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
