"""ReLU: every positive pre-activation."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from transcoder.rules.rule import Rule, Scope
from transcoder.rules.threshold import select_above
from transcoder.sparse_code import SparseCode, entries_of


class ReLU(Rule):
    """a = max(pre, 0)."""

    name: ClassVar[str] = "relu"
    scope: ClassVar[Scope] = "feature"

    def select(self, pre: Float[Tensor, "rows dict_size"]) -> SparseCode:
        """Every positive pre-activation."""
        return select_above(pre, 0.0)

    def floor(self, like: Float[Tensor, " dict_size"]) -> Float[Tensor, " dict_size"]:
        """0 for every feature."""
        return torch.zeros_like(like)

    def among(self, code: SparseCode) -> SparseCode:
        """Those of ``code`` that are positive."""
        return entries_of(code, code.values > 0)

    def as_config(self) -> dict[str, Any]:
        """No key of its own."""
        return {}

    @classmethod
    def wrong_keys(cls, config: Mapping[str, Any]) -> list[str]:
        """None, as it has no keys."""
        return []

    @classmethod
    def from_config(cls, config: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> "ReLU":
        """There is one ReLU."""
        return cls()
