"""Which features a row uses: the sparse code, and the exact selections that produce it.

``topk`` keeps the ``top_k`` largest of every row; ``batchtopk`` the ``rows * top_k`` largest of the whole batch, so
rows differ in length; ``above`` what exceeds a threshold. Values are rectified after the selection, never before: a
pass over ``top_k`` numbers a row instead of ``dict_size``.

Two-stage selection is exact. Deal the columns over ``dict_size / 16`` strided chunks of 16. Fewer than k elements
exceed the k-th largest, so at most k chunks hold the k largest, and they are among the k chunks of largest maximum.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Activation = Literal["topk", "batchtopk"]

_CHUNK = 16


@dataclass(frozen=True)
class Selection:
    """The active features of every row, one row after another and ascending within a row.

    Row r owns ``values[offsets[r]:offsets[r + 1]]`` and the same slice of ``features``. Values are at least 0; one that
    is exactly 0 was selected but does not fire. (The auxiliary loss, which has no groups, does without the ascent.)
    """

    values: Float[Tensor, " active"]
    features: Int[Tensor, " active"]
    offsets: Int[Tensor, " rows_plus_one"]

    @property
    def row_count(self) -> int:
        return self.offsets.numel() - 1

    def rows(self) -> Int[Tensor, " active"]:
        """The row that each entry belongs to."""
        number = torch.arange(self.row_count, dtype=self.features.dtype, device=self.features.device)
        return torch.repeat_interleave(number, self.offsets.diff(), output_size=self.features.numel())

    def dense(self, dict_size: int) -> Float[Tensor, "rows dict_size"]:
        """The same code with its zeros written out."""
        code = self.values.new_zeros(self.row_count, dict_size)
        code[self.rows().long(), self.features.long()] = self.values
        return code


def select(pre: Float[Tensor, "rows dict_size"], *, top_k: int, activation: Activation) -> Selection:
    """The sparse code of pre-activations under the training rule."""
    return select_topk(pre, top_k=top_k) if activation == "topk" else select_batchtopk(pre, count=top_k * len(pre))


def select_topk(pre: Float[Tensor, "rows dict_size"], *, top_k: int) -> Selection:
    """The ``top_k`` largest of every row, rectified."""
    return ascending(*largest(pre, top_k))


def ascending(values: Float[Tensor, "rows top_k"], features: Int[Tensor, "rows top_k"]) -> Selection:
    """A selection of as many entries in every row, rectified and brought into the order of the features."""
    rows, top_k = values.shape
    features, order = features.int().sort(dim=1)
    offsets = torch.arange(0, rows * top_k + 1, top_k, dtype=torch.int32, device=values.device)
    return Selection(values.gather(1, order).relu_().flatten(), features.flatten(), offsets)


def select_batchtopk(pre: Float[Tensor, "rows dict_size"], *, count: int) -> Selection:
    """The ``count`` largest of the batch, rectified; a row may get none or many."""
    rows, dict_size = pre.shape
    values, places = largest(pre.reshape(1, -1), count)
    places, order = places[0].sort()
    starts = torch.arange(rows + 1, device=pre.device) * dict_size
    offsets = torch.searchsorted(places, starts, out_int32=True)
    return Selection(values[0].gather(0, order).relu_(), (places % dict_size).int(), offsets)


def select_above(pre: Float[Tensor, "rows dict_size"], *, threshold: float) -> Selection:
    """Everything that exceeds a threshold, itself at least 0: how a batchtopk transcoder is evaluated."""
    rows, features = (pre > threshold).nonzero(as_tuple=True)
    starts = torch.arange(pre.shape[0] + 1, device=pre.device)
    offsets = torch.searchsorted(rows, starts, out_int32=True)
    return Selection(pre[rows, features].relu_(), features.int(), offsets)


def largest(
    table: Float[Tensor, "rows columns"], count: int
) -> tuple[Float[Tensor, "rows {count}"], Int[Tensor, "rows {count}"]]:
    """The ``count`` largest of every row and their columns, in no particular order."""
    columns = table.shape[1]
    if columns % _CHUNK or 2 * count * _CHUNK > columns:
        return table.topk(count, dim=1, sorted=False)
    stride = columns // _CHUNK
    chunks = table.view(-1, _CHUNK, stride).amax(dim=1).topk(count, dim=1, sorted=False).indices
    members = chunks[:, :, None] + torch.arange(0, columns, stride, device=table.device)
    members = members.flatten(1)
    values, places = table.gather(1, members).topk(count, dim=1, sorted=False)
    return values, members.gather(1, places)
