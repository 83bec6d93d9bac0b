"""JumpReLU: every pre-activation that exceeds its feature's threshold, unchanged; and how thresholds are trained.

    a = pre * H(pre - theta)              H the step from 0 to 1

H has no gradient, so that of theta is estimated from the entries near it (Rajamanoharan et al. 2024, arXiv 2407.14435),
those with |pre - theta| < bandwidth / 2:

    da/dtheta = -theta / bandwidth        dH/dtheta = -1 / bandwidth        both 0 elsewhere

The first carries the loss's gradient, the second that of a penalty on L0, the mean number of firing features a row:

    penalty = (L0 / top_k - 1)^2          a target, reached from either side
    penalty = L0 / top_k                  as Gemma Scope has it, whose coefficient decides what L0 comes out

A selection in training also has the entries just below the threshold, with the value 0.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from transcoder.rules.rule import Rule, Scope, is_count
from transcoder.sparse_code import SparseCode, entries_of


class JumpReLU(Rule):
    """a = pre where pre > threshold of its feature, else 0.

    A negative threshold counts as 0, as everywhere that such files are read (Lieberum et al. 2024, arXiv 2408.05147).
    ``top_k`` is the L0 that it was trained towards, None where that is not known.
    """

    name: ClassVar[str] = "jumprelu"
    scope: ClassVar[Scope] = "feature"
    trains_threshold: ClassVar[bool] = True
    threshold: Float[Tensor, " dict_size"]

    def __init__(
        self,
        threshold: Float[Tensor, " dict_size"],
        *,
        top_k: int | None = None,
        bandwidth: float = 0.0,
        has_target: bool = True,
    ) -> None:
        super().__init__(top_k)
        self.register_buffer("threshold", threshold.clamp_min(0))
        self.bandwidth = bandwidth
        self.has_target = has_target

    def select(self, pre: Float[Tensor, "rows dict_size"]) -> SparseCode:
        """What exceeds the threshold of its feature."""
        return select_above(pre, self.threshold)

    # Training.

    @classmethod
    def from_settings(cls, top_k: int, *, bandwidth: float = 1.0, has_target: bool = True, **_own: Any) -> "JumpReLU":
        """Without thresholds: they are trained, and come with the weights."""
        return cls(torch.empty(0), top_k=top_k, bandwidth=bandwidth, has_target=has_target)

    def with_threshold(self, threshold: Float[Tensor, " dict_size"]) -> "JumpReLU":
        """The same rule with other thresholds."""
        return JumpReLU(threshold, top_k=self.top_k, bandwidth=self.bandwidth, has_target=self.has_target)

    def select_training(self, pre: Float[Tensor, "rows dict_size"], *, batch_rows: int) -> SparseCode:
        """What exceeds its threshold, and, with value 0, what is less than half a bandwidth below it."""
        code = select_above(pre, self.threshold - self.bandwidth / 2)
        fires = code.values > self.threshold[code.features.long()]
        return SparseCode(code.values * fires, code.features, code.offsets)

    def penalty(self, l0: Float[Tensor, ""]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The penalty on L0, and its derivative by L0."""
        assert self.top_k is not None
        excess = l0 / self.top_k - 1
        if self.has_target:
            return excess.square(), 2 * excess / self.top_k
        return l0 / self.top_k, torch.full_like(l0, 1 / self.top_k)

    def threshold_gradient(
        self,
        values: Float[Tensor, " active"],
        d_values: Float[Tensor, " active"],
        *,
        offsets: Int[Tensor, " dict_size_plus_one"],
        l0_gradient: float,
    ) -> Float[Tensor, " dict_size"]:
        """The estimated gradient, from the entries of a training selection in the order of the features.

        ``d_values`` is the loss's gradient in ``values``; ``l0_gradient`` what every firing entry adds to the
        loss.
        """
        threshold = self.threshold.repeat_interleave(offsets.diff().long(), output_size=len(values))
        # An entry that does not fire is in the selection because it is near.
        near = (values == 0) | (values < threshold + self.bandwidth / 2)
        terms = near * (threshold * d_values + l0_gradient) / -self.bandwidth
        return torch.segment_reduce(terms, "sum", offsets=offsets.long())

    # Evaluation.

    def floor(self, like: Float[Tensor, " dict_size"]) -> Float[Tensor, " dict_size"]:
        """Each feature's threshold."""
        return self.threshold

    def among(self, code: SparseCode) -> SparseCode:
        """Those of ``code`` that exceed their threshold."""
        return entries_of(code, code.values > self.threshold[code.features.long()])

    # Files.

    def as_config(self) -> dict[str, Any]:
        """``top_k``, which may be null."""
        return {"top_k": self.top_k}

    def arrays(self) -> dict[str, Tensor]:
        """``threshold``, (dict_size,)."""
        return {"threshold": self.threshold}

    @classmethod
    def wrong_keys(cls, config: Mapping[str, Any]) -> list[str]:
        """``top_k`` where it is neither null nor a count."""
        top_k = config.get("top_k")
        return [] if top_k is None or is_count(top_k) else ["top_k"]

    @classmethod
    def array_shapes(cls, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """``threshold``, (dict_size,)."""
        return {"threshold": (config["dict_size"],)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> "JumpReLU":
        """With the thresholds of the file."""
        return cls(arrays["threshold"], top_k=config.get("top_k"))


def select_above(pre: Float[Tensor, "rows dict_size"], threshold: Float[Tensor, " dict_size"] | float) -> SparseCode:
    """Everything that exceeds a threshold."""
    rows, features = (pre > threshold).nonzero(as_tuple=True)
    starts = torch.arange(pre.shape[0] + 1, device=pre.device)
    offsets = torch.searchsorted(rows, starts, out_int32=True)
    return SparseCode(pre[rows, features], features.int(), offsets)
