"""The state of a training: weights, moments of the optimiser, counters."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from train.arrays.optim import Moments
from train.arrays.parameters import Parameters
from train.dead.features import Room
from transcoder.sharded import Shard


@dataclass
class State:
    """Everything that a run changes: exactly this is in a checkpoint. ``step`` is the number of finished steps."""

    weights: Parameters
    moments: Moments
    since_fired: Int[Tensor, " dict_size"]
    step: int = 0
    tokens: int = 0
    room: Room | None = None
    """For how many dead features a step on a GPU has room; None elsewhere, and before the first step."""

    @property
    def device(self) -> torch.device:
        """The device of the state."""
        return self.since_fired.device

    def dealt(self, shard: Shard, *, device: str) -> "State":
        """The state of this process's features, on a device."""
        return self._mapped(
            lambda arrays: {name: array.to(device) for name, array in shard.take(arrays).items()},
            shard.own(self.since_fired).to(device),
        )

    def gathered(self, shard: Shard, *, dict_size: int) -> "State":
        """The whole state from every process's features, in main memory."""
        since_fired = shard.interleave(self.since_fired, dict_size).cpu()
        return self._mapped(lambda arrays: shard.gathered_arrays(arrays, dict_size=dict_size), since_fired)

    def _mapped(self, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], since_fired: Tensor) -> "State":
        """A copy with ``change`` applied to the weights and to both moments."""
        weights = Parameters(**change(self.weights.tensors()))
        moments = Moments(change(self.moments.first), change(self.moments.second))
        return replace(self, weights=weights, moments=moments, since_fired=since_fired)
