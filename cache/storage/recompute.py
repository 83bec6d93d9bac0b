"""The target computed again from the source by the layer's own MLP, for a cache that stores no target.

    hidden = act(x @ up.T + up_bias)            or, with a gate,  act(x @ gate.T) * (x @ up.T)
    y      = hidden @ down.T + down_bias
    y      = y / sqrt(mean(y^2) + epsilon) * post_gain          if a norm follows the MLP

Every product is rounded to the model's own dtype, as in the model. The weights are small arrays of the cache:
``mlp.json`` (activation by Hugging Face's name, dtype, epsilon), ``mlp.up``, ``mlp.down`` and the optional ones.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from cache.format.dtypes import TORCH_DTYPES, to_array, to_tensor
from common.errors import DamagedError, UsageError

_BLOCK_ROWS = 1024
"""Rows at a time, to limit the memory of the hidden layer: 1,024 rows of Gemma-2-2B's MLP take 19 MB in bfloat16."""
_PREFIX = "mlp."


def _gelu_new(x: Tensor) -> Tensor:
    # Written as in transformers (Hendrycks and Gimpel 2016), so that every rounding is the same.
    return 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3.0))))


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": _gelu_new,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}


@dataclass(frozen=True)
class Mlp:
    """A layer's MLP, and the norm after it if there is one. Weights are (out, in); biases and gains are vectors."""

    activation: str
    epsilon: float
    up: Float[Tensor, "inner d_source"]
    down: Float[Tensor, "d_target inner"]
    gate: Float[Tensor, "inner d_source"] | None = None
    up_bias: Float[Tensor, " inner"] | None = None
    down_bias: Float[Tensor, " d_target"] | None = None
    post_gain: Float[Tensor, " d_target"] | None = None

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise UsageError(f"An MLP with the activation '{self.activation}' cannot be recomputed; known: {known}.")

    def to(self, device: str | torch.device) -> "Mlp":
        """The same MLP on a device."""
        moved = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return Mlp(self.activation, self.epsilon, **moved)

    @torch.no_grad()
    def target(self, source: Float[Tensor, "rows d_source"]) -> Float[Tensor, "rows d_target"]:
        """The target of these rows, in the model's dtype, on the MLP's device."""
        blocks = [self._block(rows.to(self.up.device, self.up.dtype)) for rows in source.split(_BLOCK_ROWS)]
        return torch.cat(blocks) if blocks else source.new_empty(0, len(self.down), dtype=self.up.dtype)

    def _block(self, x: Float[Tensor, "rows d_source"]) -> Float[Tensor, "rows d_target"]:
        act = ACTIVATIONS[self.activation]
        up = functional.linear(x, self.up, self.up_bias)
        hidden = act(up) if self.gate is None else act(functional.linear(x, self.gate)) * up
        y = functional.linear(hidden, self.down, self.down_bias)
        if self.post_gain is None:
            return y
        wide = y.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon) * self.post_gain).to(y.dtype)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that a cache stores for it, by name."""
        facts = {
            "activation": self.activation,
            "dtype": str(self.up.dtype).removeprefix("torch."),
            "epsilon": self.epsilon,
        }
        text = np.frombuffer(json.dumps(facts, sort_keys=True).encode(), np.uint8)
        weights = {
            _PREFIX + name: to_array(tensor.detach().cpu().contiguous()) for name, tensor in self._tensors().items()
        }
        return {f"{_PREFIX}json": text, **weights}

    def _tensors(self) -> dict[str, Tensor]:
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def mlp_of_arrays(arrays: Mapping[str, np.ndarray]) -> Mlp:
    """The MLP in a cache's small arrays. Raises DamagedError when there is none, or it is not valid."""
    try:
        facts: dict[str, Any] = json.loads(arrays[f"{_PREFIX}json"].tobytes())
        weights = {name.removeprefix(_PREFIX): array for name, array in arrays.items() if name.startswith(_PREFIX)}
        tensors = {name: _tensor(name, array, facts["dtype"]) for name, array in weights.items() if name != "json"}
        return Mlp(facts["activation"], float(facts["epsilon"]), **tensors)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError, UsageError) as error:
        raise DamagedError(f"The cache stores no target, and its MLP cannot be read ({error}).") from None


def _tensor(name: str, array: np.ndarray, dtype: str) -> Tensor:
    if name == "post_gain":
        return torch.from_numpy(array)
    tensor = to_tensor(array, dtype)
    if tensor.dtype != TORCH_DTYPES[dtype]:
        raise ValueError(f"{name} holds {tensor.dtype}")
    return tensor
