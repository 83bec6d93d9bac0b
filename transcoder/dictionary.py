"""A sparse dictionary as evaluation sees it: arrays, the rule that selects features, and the input it was trained on.

    pre = source @ W_enc + b_enc
    selection = rule(pre)                                     the active features, as sparse rows
    y_p = b_dec + a[:, :p] @ W_dec[:p]  (+ source @ W_skip)   for every prefix p

Our transcoders, Google's and anybody else's are all this one class, so that no metric can treat them differently.
``b_dec`` is never subtracted from the input. Arithmetic is float32. On a CPU the pre-activations exist for a block of
rows at a time, and where screening pays (``transcoder.prefilter``) only those that may matter exist at all.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from transcoder.code_parts import stacked
from transcoder.decode import decode_prefixes
from transcoder.prefilter import BLOCK_ROWS, Screen, screening
from transcoder.rules import TopK
from transcoder.sparse_code import Selection
from transcoder.weights import Weights

SourceView = Literal["mlp_in", "ln2_normalized"]
"""Which input a dictionary was trained on: what the MLP consumes, or the same before the norm's gain and bias."""

Rule = Callable[[Tensor], Selection]
"""Pre-activations (rows, dict_size) to the active features of every row."""


@dataclass(frozen=True)
class Dictionary:
    """``prefixes`` are cumulative and end at ``dict_size``; ``tokens_trained`` and ``nominal_l0`` only where known."""

    name: str
    weights: Weights
    rule: Rule
    prefixes: tuple[int, ...]
    source_view: SourceView = "mlp_in"
    top_k: int | None = None
    tokens_trained: int | None = None
    nominal_l0: float | None = None

    def __post_init__(self) -> None:
        assert self.prefixes[-1] == self.dict_size, "the last prefix is the whole dictionary"
        assert list(self.prefixes) == sorted(set(self.prefixes)), "prefixes are cumulative and strictly increasing"

    @property
    def dict_size(self) -> int:
        return self.weights.b_enc.numel()

    @property
    def groups(self) -> tuple[range, ...]:
        """The features that each prefix adds to the one before."""
        return tuple(range(start, end) for start, end in zip((0, *self.prefixes[:-1]), self.prefixes, strict=True))

    @torch.no_grad()
    def active(self, source: Float[Tensor, "rows d_source"]) -> Selection:
        """The sparse code of rows given in ``source_view``, as they are stored or in float32."""
        if source.dtype == torch.bfloat16 and self._screen:
            return stacked([self._screen.select(rows) for rows in source.split(BLOCK_ROWS)])
        W_enc, b_enc = self.weights.W_enc, self.weights.b_enc
        blocks = source.to(W_enc.dtype).split(len(source) if source.is_cuda else BLOCK_ROWS)
        pre = W_enc.new_empty(len(blocks[0]), self.dict_size)
        return stacked([self.rule(torch.addmm(b_enc, rows, W_enc, out=pre[: len(rows)])) for rows in blocks])

    @cached_property
    def _screen(self) -> Screen | None:
        return screening(self.weights, self.rule)

    @torch.no_grad()
    def reconstruct(
        self, selection: Selection, source: Float[Tensor, "rows d_source"]
    ) -> Float[Tensor, "rows prefixes d_target"]:
        """Every prefix's reconstruction of the target, in original units."""
        base, skip = self.weights.b_dec, self.weights.W_skip
        if skip is not None:
            base = torch.addmm(base, source.to(skip.dtype), skip)
        return decode_prefixes(selection, self.weights.W_dec, base, prefixes=self.prefixes)

    def to(self, device: str) -> "Dictionary":
        """The same dictionary with its arrays on ``device``, in float32."""
        arrays = {name: array.to(device, torch.float32) for name, array in self.weights.tensors().items()}
        return replace(self, weights=Weights(**arrays))

    def at_top_k(self, top_k: int) -> "Dictionary":
        """The same arrays, judged with the ``top_k`` largest features of every row: for comparisons at equal L0."""
        name = f"{self.name} at k = {top_k}"
        return replace(self, name=name, rule=TopK(top_k), top_k=top_k)
