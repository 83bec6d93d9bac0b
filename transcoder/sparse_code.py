"""The sparse code: which features each row uses, with what value."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class SparseCode:
    """The active features of every row, one row after another and ascending within a row.

    Row r owns ``values[offsets[r]:offsets[r + 1]]`` and the same slice of ``features``. Values are at least 0; one that
    is exactly 0 was selected but does not fire. (The auxiliary loss, which has no groups, needs no ascending order.)
    """

    values: Float[Tensor, " active"]
    features: Int[Tensor, " active"]
    offsets: Int[Tensor, " rows_plus_one"]

    @property
    def row_count(self) -> int:
        """The number of rows, including those without an active feature."""
        return self.offsets.numel() - 1

    def rows(self) -> Int[Tensor, " active"]:
        """The row that each entry belongs to."""
        number = torch.arange(self.row_count, dtype=self.features.dtype, device=self.features.device)
        return torch.repeat_interleave(number, self.offsets.diff(), output_size=self.features.numel())

    def dense(self, dict_size: int) -> Float[Tensor, "rows dict_size"]:
        """The same code as a dense matrix."""
        code = self.values.new_zeros(self.row_count, dict_size)
        return code.index_put((self.rows().long(), self.features.long()), self.values)


def stacked(codes: list[SparseCode]) -> SparseCode:
    """The rows of several codes, one code after another."""
    if len(codes) == 1:
        return codes[0]
    lengths = torch.cat([code.offsets.diff() for code in codes])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(codes[0].offsets.dtype)
    values = torch.cat([code.values for code in codes])
    features = torch.cat([code.features for code in codes])
    return SparseCode(values, features, offsets)


def entries_of(code: SparseCode, kept: Bool[Tensor, " entries"]) -> SparseCode:
    """The entries where ``kept`` is true, in the same rows."""
    before = torch.zeros(len(kept) + 1, dtype=code.offsets.dtype, device=kept.device)
    torch.cumsum(kept, dim=0, out=before[1:])
    return SparseCode(code.values[kept], code.features[kept], before[code.offsets.long()])


def rows_of(code: SparseCode, wanted: Bool[Tensor, " rows"]) -> SparseCode:
    """The rows where ``wanted`` is true."""
    kept = wanted[code.rows().long()]
    lengths = code.offsets.diff()[wanted]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(code.offsets.dtype)
    return SparseCode(code.values[kept], code.features[kept], offsets)


def columns_of(code: SparseCode, features: Int[Tensor, " k"], *, dict_size: int) -> Float[Tensor, "rows k"]:
    """The activations of a few features, as a dense matrix."""
    position = torch.arange(len(features), device=features.device)
    column_of = torch.full((dict_size,), -1, device=features.device).index_copy_(0, features, position)
    column = column_of[code.features.long()]
    kept = column >= 0
    table = code.values.new_zeros(code.row_count, len(features))
    table[code.rows().long()[kept], column[kept]] = code.values[kept]
    return table


def firing_below(code: SparseCode, dict_size: int, norms: Float[Tensor, " dict_size"]) -> SparseCode:
    """The entries that fire and lie in the prefix, in units of their decoder row's norm."""
    inside = entries_of(code, (code.features < dict_size) & (code.values > 0))
    return replace(inside, values=inside.values * norms[inside.features.long()])


def largest_sums(
    rows: Int[Tensor, " entries"], values: Float[Tensor, " entries"], count: int, *, limit: int
) -> Float[Tensor, " rows"]:
    """Of every row, the sum of its ``limit`` largest values; 0 for a row without any."""
    order = values.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    starts = torch.searchsorted(rows[order], torch.arange(count))
    rank = torch.arange(len(order)) - starts[rows[order]]
    kept = order[rank < limit]
    return values.new_zeros(count).index_add_(0, rows[kept], values[kept])
