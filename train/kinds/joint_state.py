"""The state of several layers that are trained together: each layer's own, which step at the same time."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from train.record.checkpoint import arrays_of, state_of
from train.state import State
from transcoder.sharded import Shard


@dataclass(frozen=True)
class JointState:
    """``numbers`` are the layers' in the model; files name the arrays of a layer by them."""

    layers: tuple[State, ...]
    numbers: tuple[int, ...]

    @property
    def step(self) -> int:
        return self.layers[0].step

    @property
    def tokens(self) -> int:
        return self.layers[0].tokens

    @property
    def room(self) -> None:
        """Every layer's own is found again after a checkpoint."""
        return

    @property
    def device(self) -> torch.device:
        return self.layers[0].device

    @property
    def since_fired(self) -> Int[Tensor, " features"]:
        """Of the features of all layers."""
        return torch.cat([layer.since_fired for layer in self.layers])

    def dealt(self, shard: Shard, *, device: str) -> "JointState":
        """The same on a device."""
        return JointState(tuple(layer.dealt(shard, device=device) for layer in self.layers), self.numbers)

    def gathered(self, shard: Shard, *, dict_size: int) -> "JointState":
        """The whole state from every process's features."""
        return JointState(tuple(layer.gathered(shard, dict_size=dict_size) for layer in self.layers), self.numbers)

    def arrays(self) -> dict[str, Tensor]:
        """The arrays of all layers by name, as they lie in a checkpoint."""
        named = zip(self.numbers, self.layers, strict=True)
        return {f"{number}/{name}": array for number, layer in named for name, array in arrays_of(layer).items()}

    @staticmethod
    def of_arrays(arrays: Mapping[str, Tensor], *, step: int, tokens: int) -> "JointState":
        """The inverse of ``arrays``."""
        numbers = sorted({int(name.partition("/")[0]) for name in arrays})
        layers = [
            {name.partition("/")[2]: array for name, array in arrays.items() if name.startswith(f"{number}/")}
            for number in numbers
        ]
        return JointState(tuple(state_of(own, step=step, tokens=tokens) for own in layers), tuple(numbers))
