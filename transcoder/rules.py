"""The rules by which dictionaries select the features of a row, whoever trained them.

    TopK         a = relu(pre) where pre is one of the row's top_k largest        (ours)
    Thresholds   a = pre where pre > threshold of its feature, else 0             (JumpReLU; ReLU where that is 0)

Each rule selects from all pre-activations of a row, or ``among`` a few that are known to contain every feature that
fires.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from transcoder.code_parts import entries_of
from transcoder.sparse_code import Selection, select_topk


@dataclass(frozen=True)
class TopK:
    """The ``top_k`` largest of every row, rectified."""

    top_k: int

    def __call__(self, pre: Float[Tensor, "rows dict_size"]) -> Selection:
        return select_topk(pre, top_k=self.top_k)

    def among(self, code: Selection) -> Selection:
        """Those of ``code`` that fire and are among the ``top_k`` largest of their row."""
        starts, rows = code.offsets[:-1].long(), code.rows().long()
        place = torch.arange(len(rows), device=rows.device) - starts[rows]
        width = max(self.top_k, int(code.offsets.diff().max()))
        table = code.values.new_full((code.row_count, width), -torch.inf)
        table[rows, place] = code.values
        largest = table.topk(self.top_k, dim=1, sorted=False)
        chosen = (starts[:, None] + largest.indices)[largest.values > -torch.inf]
        kept = torch.zeros_like(rows, dtype=torch.bool)
        kept[chosen] = True
        return entries_of(code, kept & (code.values > 0))


@dataclass(frozen=True)
class Thresholds:
    """Every pre-activation above its feature's threshold, unchanged; no threshold is below 0 (see ``jumprelu``)."""

    threshold: Float[Tensor, " dict_size"]

    def __call__(self, pre: Float[Tensor, "rows dict_size"]) -> Selection:
        rows, features = (pre > self.threshold.to(pre.device)).nonzero(as_tuple=True)
        starts = torch.arange(pre.shape[0] + 1, device=pre.device)
        return Selection(pre[rows, features], features.int(), torch.searchsorted(rows, starts, out_int32=True))

    def among(self, code: Selection) -> Selection:
        """Those of ``code`` that exceed their threshold."""
        return entries_of(code, code.values > self.threshold[code.features.long()])


def jumprelu(threshold: Float[Tensor, " dict_size"]) -> Thresholds:
    """The rule of these thresholds; a negative one counts as 0, as everywhere that such files are read."""
    return Thresholds(threshold.clamp_min(0))
