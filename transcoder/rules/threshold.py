"""JumpReLU: every pre-activation that exceeds its feature's threshold, unchanged."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from transcoder.rules.rule import Rule, Scope
from transcoder.sparse_code import SparseCode, entries_of


class JumpReLU(Rule):
    """a = pre where pre > threshold of its feature, else 0.

    A negative threshold counts as 0, as everywhere that such files are read (Lieberum et al. 2024, arXiv 2408.05147).
    """

    name: ClassVar[str] = "jumprelu"
    scope: ClassVar[Scope] = "feature"
    threshold: Float[Tensor, " dict_size"]

    def __init__(self, threshold: Float[Tensor, " dict_size"]) -> None:
        super().__init__()
        self.register_buffer("threshold", threshold.clamp_min(0))

    def select(self, pre: Float[Tensor, "rows dict_size"]) -> SparseCode:
        return select_above(pre, self.threshold)

    def floor(self, like: Float[Tensor, " dict_size"]) -> Float[Tensor, " dict_size"]:
        return self.threshold

    def among(self, code: SparseCode) -> SparseCode:
        """Those of ``code`` that exceed their threshold."""
        return entries_of(code, code.values > self.threshold[code.features.long()])

    def as_config(self) -> dict[str, Any]:
        return {}

    def arrays(self) -> dict[str, Tensor]:
        return {"threshold": self.threshold}

    @classmethod
    def wrong_keys(cls, config: Mapping[str, Any]) -> list[str]:
        return []

    @classmethod
    def array_shapes(cls, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return {"threshold": (config["dict_size"],)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> "JumpReLU":
        return cls(arrays["threshold"])


def select_above(pre: Float[Tensor, "rows dict_size"], threshold: Float[Tensor, " dict_size"] | float) -> SparseCode:
    """Everything that exceeds a threshold, itself at least 0."""
    rows, features = (pre > threshold).nonzero(as_tuple=True)
    starts = torch.arange(pre.shape[0] + 1, device=pre.device)
    offsets = torch.searchsorted(rows, starts, out_int32=True)
    return SparseCode(pre[rows, features], features.int(), offsets)
