"""The gain and bias with which a model's norm ends, as a change of variables between what comes before and after them.

m = x * gain + bias        x the normalised residual (ln2_normalized), m what the MLP consumes (mlp_in)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class NormAffine:
    """Float32, one number a dimension."""

    gain: Float[Tensor, " d_source"]
    bias: Float[Tensor, " d_source"]

    @staticmethod
    def of_arrays(arrays: Mapping[str, np.ndarray]) -> "NormAffine | None":
        """From a cache's arrays ``gain`` and ``bias``; None where it stores no gain, 0 where it stores no bias."""
        if "gain" not in arrays:
            return None
        gain = torch.from_numpy(arrays["gain"]).float()
        bias = arrays.get("bias")
        return NormAffine(gain, torch.zeros_like(gain) if bias is None else torch.from_numpy(bias).float())

    @property
    def is_invertible(self) -> bool:
        """Whether x can be recovered from m: where a gain is 0, m says nothing of x."""
        return bool((self.gain != 0).all())

    def apply(self, normalised: Float[Tensor, "*batch d_source"]) -> Float[Tensor, "*batch d_source"]:
        """``mlp_in`` of ``ln2_normalized``, in float32."""
        return normalised.float() * self.gain.to(normalised.device) + self.bias.to(normalised.device)

    def undo(self, consumed: Float[Tensor, "*batch d_source"]) -> Float[Tensor, "*batch d_source"]:
        """``ln2_normalized`` of ``mlp_in``, in float32."""
        return (consumed.float() - self.bias.to(consumed.device)) / self.gain.to(consumed.device)

    def undo_moments(
        self, mean: Float[np.ndarray, " d_source"], variance: Float[np.ndarray, " d_source"]
    ) -> tuple[Float[np.ndarray, " d_source"], Float[np.ndarray, " d_source"]]:
        """Mean and variance of ``ln2_normalized`` from those of ``mlp_in``."""
        gain = self.gain.double().numpy()
        bias = self.bias.double().numpy()
        return (mean - bias) / gain, variance / gain**2
