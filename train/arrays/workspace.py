"""The large arrays that a step writes into, made once and used by every step.

New arrays of this size would cost more in page faults than the arithmetic that fills them, and raise peak memory. On a
CPU, where a row's features do not depend on other rows, the pre-activations exist for ``BLOCK_ROWS`` rows at a time: no
(rows x dict_size) array is made.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from train.arrays.parameters import Parameters
from transcoder.rules.rule import Rule

BLOCK_ROWS = 512
"""Rows whose pre-activations exist at a time: at 12,288 features 25 MB of float32."""


@dataclass
class Workspace:
    """``pre`` for a block of rows, the gradient, and the weights in the compute dtype where that is not their own.

    ``is_current`` says that an update left the masters' rounding in ``weights``, so that the next step need not round.
    """

    pre: Float[Tensor, "block_rows dict_size"]
    gradients: Parameters
    weights: Parameters | None
    is_current: bool = False

    @staticmethod
    def like(weights: Parameters, *, rows: int, rule: Rule, dtype: torch.dtype | None = None) -> "Workspace":
        """Room for batches of up to ``rows`` rows, computing in ``dtype`` (the weights' own where None)."""
        dtype = dtype or weights.W_dec.dtype
        block_rows = min(rows, BLOCK_ROWS) if rule.scope != "batch" and not weights.W_dec.is_cuda else rows
        pre = weights.b_enc.new_empty(block_rows, weights.b_enc.numel(), dtype=dtype)
        return Workspace(
            pre=pre,
            gradients=_empty_like(weights, weights.W_dec.dtype),
            weights=None if dtype == weights.W_dec.dtype else _empty_like(weights, dtype),
        )

    def compute_weights(self, weights: Parameters) -> Parameters:
        """The weights in the compute dtype: a rounding of the masters as they are now, or the masters themselves."""
        if self.weights is None:
            return weights
        if not self.is_current:
            for name, rounded in self.weights.tensors().items():
                rounded.copy_(weights.tensors()[name])
        self.is_current = False
        return self.weights


def _empty_like(weights: Parameters, dtype: torch.dtype) -> Parameters:
    """Arrays of the same shapes and memory layouts."""
    return Parameters(**{name: torch.empty_like(array, dtype=dtype) for name, array in weights.tensors().items()})
