"""Parts and sums of sparse codes: some rows, some columns, a prefix, the largest few of every row."""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from transcoder.sparse_code import Selection


def stacked(codes: list[Selection]) -> Selection:
    """The rows of several codes, one code after another."""
    lengths = torch.cat([code.offsets.diff() for code in codes])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(codes[0].offsets.dtype)
    values, features = (torch.cat([getattr(code, name) for code in codes]) for name in ("values", "features"))
    return Selection(values, features, offsets)


def largest_sums(
    rows: Int[Tensor, " entries"], values: Float[Tensor, " entries"], count: int, *, limit: int
) -> Float[Tensor, " rows"]:
    """Of every row, the sum of its ``limit`` largest values; 0 for a row without any."""
    order = values.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]
    starts = torch.searchsorted(rows[order], torch.arange(count))
    place = torch.arange(len(order)) - starts[rows[order]]
    kept = order[place < limit]
    return values.new_zeros(count).index_add_(0, rows[kept], values[kept])


def entries_of(code: Selection, kept: Bool[Tensor, " entries"]) -> Selection:
    """The entries where ``kept`` is true, in the same rows."""
    before = torch.zeros(len(kept) + 1, dtype=code.offsets.dtype, device=kept.device)
    torch.cumsum(kept, dim=0, out=before[1:])
    return Selection(code.values[kept], code.features[kept], before[code.offsets.long()])


def firing_below(code: Selection, dict_size: int, norms: Float[Tensor, " dict_size"]) -> Selection:
    """The entries that fire and lie in the prefix, in units of their decoder row's norm."""
    inside = entries_of(code, (code.features < dict_size) & (code.values > 0))
    return replace(inside, values=inside.values * norms[inside.features.long()])


def rows_of(code: Selection, wanted: Bool[Tensor, " rows"]) -> Selection:
    """The rows where ``wanted`` is true."""
    kept = wanted[code.rows().long()]
    lengths = code.offsets.diff()[wanted]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(code.offsets.dtype)
    return Selection(code.values[kept], code.features[kept], offsets)


def columns_of(code: Selection, features: Int[Tensor, " k"], *, dict_size: int) -> Float[Tensor, "rows k"]:
    """The activations of a few features, written out."""
    place = torch.full((dict_size,), -1).index_copy_(0, features, torch.arange(len(features)))
    column = place[code.features.long()]
    kept = column >= 0
    table = code.values.new_zeros(code.row_count, len(features))
    table[code.rows().long()[kept], column[kept]] = code.values[kept]
    return table
