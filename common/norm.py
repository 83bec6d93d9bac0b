"""The gain and bias of a model's norm, as a change of variables.

m = x * gain + bias        x: the normalised residual (ln2_normalized), m: the input of the MLP (mlp_in)
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class NormAffine:
    """Gain and bias in float32, one number for each dimension."""

    gain: Float[Tensor, " d_source"]
    bias: Float[Tensor, " d_source"]

    @staticmethod
    def of_arrays(arrays: Mapping[str, np.ndarray]) -> "NormAffine | None":
        """From a cache's arrays ``gain`` and ``bias``; None if it stores no gain, a bias of 0 if it stores none."""
        if "gain" not in arrays:
            return None
        gain = torch.from_numpy(arrays["gain"]).float()
        bias = arrays.get("bias")
        return NormAffine(gain, torch.zeros_like(gain) if bias is None else torch.from_numpy(bias).float())

    @property
    def is_invertible(self) -> bool:
        """Whether x can be computed from m: not if a gain is 0."""
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
