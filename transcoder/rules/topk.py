"""Top-k: the ``top_k`` largest pre-activations of every row, rectified.

Values are rectified after the selection, never before: a pass over ``top_k`` numbers a row instead of ``dict_size``.

Two-stage selection is exact. Deal the columns over ``dict_size / 16`` strided chunks of 16. Fewer than k elements
exceed the k-th largest, so at most k chunks hold the k largest, and they are among the k chunks of largest maximum.
"""

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoder.rules.rule import Rule, Scope
from transcoder.sparse_code import SparseCode, entries_of

_CHUNK = 16
"""Columns a chunk: one pass over all for the maxima, then top-k among a sixteenth of them."""


class TopK(Rule):
    """The ``top_k`` largest of every row, rectified."""

    name: ClassVar[str] = "topk"
    scope: ClassVar[Scope] = "row"

    def __init__(self, top_k: int) -> None:
        super().__init__(top_k)

    def select(self, pre: Float[Tensor, "rows dict_size"]) -> SparseCode:
        """The ``top_k`` largest of every row, rectified: (rows, dict_size) to exactly ``top_k`` entries a row."""
        return select_topk(pre, top_k=self.kept(1))

    def among(self, code: SparseCode) -> SparseCode:
        """Those of ``code`` that fire and are among the ``top_k`` largest of their row."""
        limit = self.kept(1)
        starts = code.offsets[:-1].long()
        rows = code.rows().long()
        column = torch.arange(len(rows), device=rows.device) - starts[rows]
        width = max(limit, int(code.offsets.diff().max()))
        table = code.values.new_full((code.row_count, width), -torch.inf)
        table[rows, column] = code.values
        found = table.topk(limit, dim=1, sorted=False)
        chosen = (starts[:, None] + found.indices)[found.values > -torch.inf]
        kept = torch.zeros_like(rows, dtype=torch.bool)
        kept[chosen] = True
        return entries_of(code, kept & (code.values > 0))


def select_topk(pre: Float[Tensor, "rows dict_size"], *, top_k: int) -> SparseCode:
    """The ``top_k`` largest of every row, rectified, in the order of the features."""
    values, features = largest(pre, top_k)
    rows = len(values)
    features, order = features.int().sort(dim=1)
    offsets = torch.arange(0, rows * top_k + 1, top_k, dtype=torch.int32, device=values.device)
    return SparseCode(values.gather(1, order).relu_().flatten(), features.flatten(), offsets)


def largest(
    table: Float[Tensor, "rows columns"], count: int
) -> tuple[Float[Tensor, "rows {count}"], Int[Tensor, "rows {count}"]]:
    """The ``count`` largest of every row and their columns, in no particular order."""
    columns = table.shape[1]
    # With so many chunks to look into, the second stage is no smaller than the first.
    if columns % _CHUNK or 2 * count * _CHUNK > columns:
        values, members = table.topk(count, dim=1, sorted=False)
        return values, members
    stride = columns // _CHUNK
    chunks = table.view(-1, _CHUNK, stride).amax(dim=1).topk(count, dim=1, sorted=False).indices
    members = chunks[:, :, None] + torch.arange(0, columns, stride, device=table.device)
    members = members.flatten(1)
    values, positions = table.gather(1, members).topk(count, dim=1, sorted=False)
    return values, members.gather(1, positions)
