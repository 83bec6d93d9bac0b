"""The numbers that a training step reads and writes: one array for each parameter of a transcoder.

The weights themselves, a gradient, and weights rounded to the dtype of the matrix products all have this form. The step
differentiates by hand, so these are plain tensors, without autograd.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from transcoder.transcoder import Transcoder, random_arrays


@dataclass(frozen=True)
class Parameters:
    """One array for each parameter, shaped and laid out as in ``Transcoder``."""

    W_enc: Float[Tensor, "dict_size d_source"]
    b_enc: Float[Tensor, " dict_size"]
    W_dec: Float[Tensor, "dict_size d_target"]
    b_dec: Float[Tensor, " d_target"]
    W_skip: Float[Tensor, "d_source d_skip"] | None = None
    threshold: Float[Tensor, " dict_size"] | None = None
    """Of a rule that trains a threshold for each feature."""

    @staticmethod
    def from_transcoder(transcoder: Transcoder) -> "Parameters":
        """The transcoder's own arrays, not copies: a step that changes these changes the transcoder."""
        return Parameters(**{name: array.detach() for name, array in transcoder.arrays().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The arrays by name, in a fixed order; ``W_skip`` and ``threshold`` only where there is one."""
        arrays = {"W_enc": self.W_enc, "b_enc": self.b_enc, "W_dec": self.W_dec, "b_dec": self.b_dec}
        optional = {"W_skip": self.W_skip, "threshold": self.threshold}
        return arrays | {name: array for name, array in optional.items() if array is not None}

    def transcoder_arrays(self) -> dict[str, Tensor]:
        """The arrays that a ``Transcoder`` has itself; the threshold is its rule's."""
        return replace(self, threshold=None).tensors()

    def reading_less_b_dec(self, sign: float = 1.0) -> "Parameters":
        """The same encoder for a source minus ``sign`` times b_dec (of an autoencoder, whose b_dec is in that
        space)."""
        return replace(self, b_enc=self.b_enc + sign * (self.W_enc @ self.b_dec))

    def to(self, device: str | torch.device) -> "Parameters":
        """The same arrays on a device."""
        return Parameters(**{name: array.to(device) for name, array in self.tensors().items()})


def random_parameters(
    d_source: int,
    d_target: int,
    *,
    dict_size: int,
    skip: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Parameters:
    """As ``random_arrays``."""
    return Parameters(**random_arrays(d_source, d_target, dict_size=dict_size, skip=skip, seed=seed, dtype=dtype))
