"""What every selection rule offers to training, to evaluation and to config.json.

    pre  = source @ W_enc.T + b_enc          (rows, dict_size)
    code = rule.select(pre)                  the active features of every row

A rule is a torch module, so that thresholds move and are saved with the transcoder that holds them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from transcoder.sparse_code import SparseCode

Scope = Literal["row", "batch", "feature"]
"""Which pre-activations a feature competes with: those of its row, of the whole batch, or none."""


class Rule(nn.Module, ABC):
    """Selects the active features of every row. The defaults suit a rule whose only number is ``top_k``.

    A rule of scope ``row`` selects exactly ``top_k`` features of every row; ``batch``, ``top_k`` a row on average.
    """

    name: ClassVar[str]
    scope: ClassVar[Scope]
    trains_threshold: ClassVar[bool] = False
    """Whether training gives every feature a threshold. Then the rule needs the three methods for it."""

    def __init__(self, top_k: int | None = None) -> None:
        super().__init__()
        self.top_k = top_k

    @abstractmethod
    def select(self, pre: Float[Tensor, "rows dict_size"]) -> SparseCode:
        """The sparse code of rows under the rule of evaluation. The values are copies, and differentiable."""

    def forward(self, pre: Float[Tensor, "rows dict_size"]) -> SparseCode:
        """``select``, so that hooks see it."""
        return self.select(pre)

    # Training.

    @classmethod
    def from_settings(cls, top_k: int, **_own: Any) -> "Rule":
        """The rule of a training run; ``_own`` are settings that only some rules know."""
        return cls(top_k)

    def select_training(self, pre: Float[Tensor, "rows dict_size"], *, batch_rows: int) -> SparseCode:
        """The candidates among these rows of a batch of ``batch_rows``, if training selects in another way."""
        return self.select(pre)

    def with_threshold(self, threshold: Float[Tensor, " dict_size"]) -> "Rule":
        """The rule with the thresholds that are trained beside the weights."""
        raise NotImplementedError

    def penalty(self, l0: Float[Tensor, ""]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """What the loss adds for a mean L0, before its coefficient, and its derivative by L0."""
        raise NotImplementedError

    def threshold_gradient(
        self,
        values: Float[Tensor, " active"],
        d_values: Float[Tensor, " active"],
        *,
        offsets: Int[Tensor, " dict_size_plus_one"],
        l0_gradient: float,
    ) -> Float[Tensor, " dict_size"]:
        """The gradient of the thresholds, from a selection of training in the order of the features."""
        raise NotImplementedError

    def kept(self, batch_rows: int) -> int:
        """How many entries a selection keeps: of a row, or of a whole batch (scope ``batch``)."""
        assert self.top_k is not None
        return self.top_k * batch_rows if self.scope == "batch" else self.top_k

    def calibrated(self, batches: Iterable[Float[Tensor, "rows dict_size"]], *, rows: int) -> "Rule":
        """The rule for evaluation, from pre-activations of ``rows`` training rows, which are computed only if
        needed."""
        return self

    # Evaluation. The prefilter needs one of the two numbers below, and ``among``; it is not used for a rule without
    # them.

    @property
    def row_limit(self) -> int | None:
        """The largest number of features that a row uses in evaluation, if it is fixed; else None."""
        return self.top_k if self.scope == "row" else None

    def floor(self, like: Float[Tensor, " dict_size"]) -> Float[Tensor, " dict_size"] | None:
        """For each feature the value, at least 0, above which it is selected; None if that depends on other
        features."""
        return None

    def among(self, code: SparseCode) -> SparseCode:
        """The rule's selection from some entries of every row, among which are all that fire."""
        raise NotImplementedError

    # Files.

    def as_config(self) -> dict[str, Any]:
        """The rule's own keys of config.json."""
        return {"top_k": self.top_k}

    def arrays(self) -> dict[str, Tensor]:
        """The rule's own arrays of transcoder.safetensors."""
        return {}

    @classmethod
    def wrong_keys(cls, config: Mapping[str, Any]) -> list[str]:
        """The rule's own keys of a config.json that have a wrong value."""
        return [] if is_count(config.get("top_k")) else ["top_k"]

    @classmethod
    def array_shapes(cls, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """The shapes of the rule's own arrays, from a checked config.json."""
        return {}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> "Rule":
        """The rule of a saved transcoder, from its checked config.json and its own arrays."""
        return cls(config["top_k"])


def is_count(value: object) -> bool:
    """Whether a value of a config.json is a positive integer below 2^31."""
    return type(value) is int and 0 < value < 1 << 31


def is_finite_float(value: object) -> bool:
    """Whether a value of a config.json is a number to compute with."""
    return isinstance(value, float) and math.isfinite(value)
