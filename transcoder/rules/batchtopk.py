"""Batch top-k: the ``rows * top_k`` largest of a whole batch in training, a fixed threshold in evaluation.

After training, the features of a row must not depend on other rows. So a trained transcoder is evaluated with one
number: the threshold at which training rows have ``top_k`` active features on average (Bussmann et al. 2024,
arXiv 2412.06410).
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from transcoder.rules.rule import Rule, Scope, is_finite_float
from transcoder.rules.threshold import select_above
from transcoder.rules.topk import largest
from transcoder.sparse_code import SparseCode, entries_of


class BatchTopK(Rule):
    """The ``top_k`` largest a row on average, rectified; above ``threshold`` once that is known."""

    name: ClassVar[str] = "batchtopk"
    scope: ClassVar[Scope] = "batch"

    def __init__(self, top_k: int, threshold: float | None = None) -> None:
        super().__init__(top_k)
        self.threshold = None if threshold is None else max(0.0, threshold)

    def select(self, pre: Float[Tensor, "rows dict_size"]) -> SparseCode:
        """What exceeds the threshold; if there is none yet, the largest values of these rows as one batch."""
        if self.threshold is None:
            return self.select_training(pre, batch_rows=len(pre))
        return select_above(pre, self.threshold)

    def select_training(self, pre: Float[Tensor, "rows dict_size"], *, batch_rows: int) -> SparseCode:
        """What could be kept of these rows, which are part of a batch of ``batch_rows``."""
        return select_batchtopk(pre, count=min(self.kept(batch_rows), pre.numel()))

    def calibrated(self, batches: Iterable[Float[Tensor, "rows dict_size"]], *, rows: int) -> "BatchTopK":
        """With the threshold that leaves ``top_k`` features a row; 0 if fewer fire at all."""
        wanted = self.kept(rows)
        kept: Tensor | None = None
        for pre in batches:
            values = pre.relu().flatten()
            kept = _largest_positive(values if kept is None else torch.cat([kept, values]), wanted)
        enough = kept is not None and kept.numel() >= max(1, wanted)
        return BatchTopK(self.kept(1), float(kept.min()) if enough and kept is not None else 0.0)

    def floor(self, like: Float[Tensor, " dict_size"]) -> Float[Tensor, " dict_size"] | None:
        """The same threshold for every feature."""
        return None if self.threshold is None else torch.full_like(like, self.threshold)

    def among(self, code: SparseCode) -> SparseCode:
        """Those of ``code`` that exceed the threshold."""
        assert self.threshold is not None
        return entries_of(code, code.values > self.threshold)

    def as_config(self) -> dict[str, Any]:
        """``top_k`` and the calibrated ``threshold``."""
        return {"top_k": self.top_k, "threshold": self.threshold}

    def arrays(self) -> dict[str, Tensor]:
        """None."""
        return {} if self.threshold is None else {"threshold": torch.tensor(self.threshold)}

    @classmethod
    def wrong_keys(cls, config: Mapping[str, Any]) -> list[str]:
        """``top_k`` or ``threshold``, where they make no sense."""
        threshold = config.get("threshold")
        is_right = "threshold" in config and (threshold is None or is_finite_float(threshold))
        return super().wrong_keys(config) + ([] if is_right else ["threshold"])

    @classmethod
    def array_shapes(cls, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """None."""
        return {} if config["threshold"] is None else {"threshold": ()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> "BatchTopK":
        """With the threshold that training calibrated."""
        return cls(config["top_k"], config["threshold"])


def select_batchtopk(pre: Float[Tensor, "rows dict_size"], *, count: int) -> SparseCode:
    """The ``count`` largest of the batch, rectified; a row may get none or many."""
    rows, dict_size = pre.shape
    values, entries = largest(pre.reshape(1, -1), count)
    entries, order = entries[0].sort()
    starts = torch.arange(rows + 1, device=pre.device) * dict_size
    offsets = torch.searchsorted(entries, starts, out_int32=True)
    return SparseCode(values[0].gather(0, order).relu_(), (entries % dict_size).int(), offsets)


def _largest_positive(values: Float[Tensor, " values"], count: int) -> Float[Tensor, " largest"]:
    """The ``count`` largest positive ones, in any order."""
    positive = values[values > 0]
    return positive if positive.numel() <= count else positive.topk(count, sorted=False).values
