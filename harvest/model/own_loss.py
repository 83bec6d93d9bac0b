"""The language model's own loss on the text: it shows that weights, tokenizer and text fit each other.

A site proof is true for random weights too; with them this loss is poor. For the next-token probabilities p,

    loss    = mean over predicted tokens t of  -ln p(token_t | tokens before t in the context)
    unigram = -sum over token ids v of  f_v ln f_v,   f_v = count of v / count of all tokens

both in nats per token, without special tokens as targets. ``unigram`` is the lowest loss of any model that knows only
how frequent each token is in this text. A trained model is far below it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from harvest.model.language_model import LanguageModel
from harvest.text.tokens import ContextBatch

READ_CONTEXTS = 128
"""Contexts of text from which the unigram counts and the sample are taken."""
_CONTEXTS_LIMIT = 16
_MINIMUM_CONTEXTS = 2
"""The sample has 2 to 16 contexts: enough to tell a trained model from a random one, in seconds on a CPU."""
_SHARE = 100
"""At most one context in 100 of the harvest is run through the complete model: below a few per cent of the work."""
POSITIONS_LIMIT = 512
"""The first tokens of a context are enough; logits of long contexts and a large vocabulary would fill the memory."""
BLOCK_POSITIONS = 64
"""Positions whose logits are converted to float32 at a time: 65 MB for a vocabulary of 256,000."""
_ENOUGH_TOKENS = 500
"""With fewer tokens the unigram model, fitted to them, looks better than it is, so there is no warning."""


@dataclass(frozen=True)
class OwnLoss:
    """Nats per token on the first contexts of the text, on a sample of later ones, and of a unigram model."""

    first: float
    sampled: float
    unigram: float
    predicted_tokens: int
    counted_tokens: int

    @property
    def is_poor(self) -> bool:
        """Whether the model predicts the text no better than token frequencies do."""
        return self.counted_tokens >= _ENOUGH_TOKENS and not min(self.first, self.sampled) < self.unigram

    def as_dict(self) -> dict[str, float | int]:
        """As JSON, for the manifest."""
        return {
            "first_contexts": self.first,
            "sampled_contexts": self.sampled,
            "unigram": self.unigram,
            "predicted_tokens": self.predicted_tokens,
            "counted_tokens": self.counted_tokens,
        }

    def lines(self) -> list[str]:
        """The measurement for people, and a warning if it is poor."""
        numbers = (
            f"The language model's own loss: {self.first:.2f} nats per token on the first contexts, "
            f"{self.sampled:.2f} on sampled ones (token frequencies alone: {self.unigram:.2f})."
        )
        if not self.is_poor:
            return [numbers]
        return [
            numbers,
            "Warning: the model predicts this text no better than token frequencies do. Its weights, its tokenizer "
            "or the text are probably wrong; check them before you use this cache.",
        ]


def measure_own_loss(
    model: LanguageModel, batch: ContextBatch, *, planned_contexts: int, within_documents: bool = False
) -> OwnLoss:
    """Run some contexts of ``batch`` through the complete model (it must not be cut yet).

    ``planned_contexts`` is how many contexts the harvest has: it limits the cost.
    """
    chosen = _choose(len(batch.tokens), planned_contexts)
    first = chosen[: max(1, len(chosen) // 4)]
    sums: list[float] = []
    counts: list[int] = []
    for context in chosen:
        loss, count = _context_loss(model, batch, context, within_documents=within_documents)
        sums.append(loss)
        counts.append(count)
    split = len(first)
    counted = _ordinary(model, batch.tokens) & batch.kept
    return OwnLoss(
        first=sum(sums[:split]) / max(1, sum(counts[:split])),
        sampled=sum(sums[split:]) / max(1, sum(counts[split:])) if counts[split:] else sum(sums) / max(1, sum(counts)),
        unigram=unigram_entropy(batch.tokens[counted]),
        predicted_tokens=sum(counts),
        counted_tokens=int(counted.sum()),
    )


def unigram_entropy(tokens: Int[np.ndarray, " tokens"]) -> float:
    """``-sum f ln f`` of the tokens' frequencies, in nats; 0 without tokens."""
    if not len(tokens):
        return 0.0
    _, counts = np.unique(tokens, return_counts=True)
    frequencies = counts / counts.sum()
    return float(-(frequencies * np.log(frequencies)).sum())


def _choose(contexts: int, planned: int) -> list[int]:
    """Some contexts from the beginning, then evenly spaced ones up to the last, in ascending order."""
    # A quarter is from the beginning, where a wrong text or tokenizer shows first; the others say whether it holds
    # later.
    wanted = min(contexts, max(_MINIMUM_CONTEXTS, min(_CONTEXTS_LIMIT, planned // _SHARE)))
    leading = max(1, wanted // 4)
    spread = np.linspace(leading, contexts - 1, wanted - leading, dtype=np.int64)
    return list(dict.fromkeys([*range(leading), *spread.tolist()]))


def _ordinary(model: LanguageModel, tokens: Int[np.ndarray, "*shape"]) -> Bool[np.ndarray, "*shape"]:
    return ~np.isin(tokens, model.tokenizer.special_ids)


@torch.inference_mode()
def _context_loss(
    model: LanguageModel, batch: ContextBatch, context: int, *, within_documents: bool
) -> tuple[float, int]:
    """The summed loss of one context's ordinary tokens, and their number."""
    length = min(int(batch.kept[context].sum()), POSITIONS_LIMIT)
    tokens = torch.from_numpy(batch.tokens[context : context + 1, :length]).to(model.device)
    positions: Tensor | None = None
    predicted = _ordinary(model, batch.tokens[context, 1:length])
    if within_documents:
        own = batch.document_positions[context, :length]
        positions = torch.from_numpy(own[None]).to(model.device)
        # The first token of a document has nothing before it.
        predicted = predicted & (own[1:] > 0)
    logits: Any = model.hugging(input_ids=tokens, position_ids=positions, use_cache=False).logits[0]
    wanted = torch.from_numpy(np.flatnonzero(predicted))
    total = 0.0
    for rows in wanted.split(BLOCK_POSITIONS):
        total += _summed_loss(logits[rows.to(logits.device)], tokens[0, rows.to(tokens.device) + 1])
    return total, len(wanted)


def _summed_loss(logits: Float[Tensor, "rows vocabulary"], targets: Int[Tensor, " rows"]) -> float:
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    return -float(log_probabilities.gather(1, targets.to(logits.device)[:, None]).double().sum())
