"""The arrays of a nested transcoder, and of its gradient, which has the same shapes.

pre = source @ W_enc + b_enc
y_p = b_dec + a[:, :p] @ W_dec[:p]   (+ source @ W_skip)   for every prefix p
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """``W_enc`` is kept feature-major in memory (``W_enc.T`` is contiguous): a feature's weights lie side by side."""

    W_enc: Float[Tensor, "d_source dict_size"]
    b_enc: Float[Tensor, " dict_size"]
    W_dec: Float[Tensor, "dict_size d_target"]
    b_dec: Float[Tensor, " d_target"]
    W_skip: Float[Tensor, "d_source d_target"] | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The arrays by name, in a fixed order; ``W_skip`` only where there is one."""
        arrays = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        return arrays if self.W_skip is None else arrays | {"W_skip": self.W_skip}

    def to(self, device: str | torch.device) -> "Weights":
        """The same arrays on a device."""
        return Weights(**{name: array.to(device) for name, array in self.tensors().items()})


def feature_major(W_enc: Float[Tensor, "d_source dict_size"]) -> Float[Tensor, "d_source dict_size"]:
    """The same matrix with every feature's weights contiguous; no copy where they already are."""
    return W_enc.T.contiguous().T


def random_weights(
    d_source: int,
    d_target: int,
    *,
    dict_size: int,
    skip: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Weights:
    """Unit decoder rows and encoder columns, zero biases and skip: a start for training, benchmarks and tests."""
    generator = torch.Generator().manual_seed(seed)
    encoder = torch.randn(dict_size, d_source, generator=generator, dtype=dtype)
    decoder = torch.randn(dict_size, d_target, generator=generator, dtype=dtype)
    return Weights(
        W_enc=torch.nn.functional.normalize(encoder, dim=1).T,
        b_enc=torch.zeros(dict_size, dtype=dtype),
        W_dec=torch.nn.functional.normalize(decoder, dim=1),
        b_dec=torch.zeros(d_target, dtype=dtype),
        W_skip=torch.zeros(d_source, d_target, dtype=dtype) if skip else None,
    )
