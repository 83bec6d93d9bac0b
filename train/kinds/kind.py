"""What a training asks of the kind of dictionary that it trains; ``registry.py`` names the kinds.

To add one: a class here beside the others, a line in ``registry.py``, and its settings in ``train/config.py``. The run,
its order of reading, checkpoints, log and resumption (``train/member.py``, ``train/run.py``) know none of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, device

from train.arrays.units import Units
from train.config import SampleSettings
from train.context import TrainingContext
from train.record.step_metrics import StepMetrics
from train.resolved import ResolvedSettings
from transcoder.sharded import Shard


@runtime_checkable
class RunState(Protocol):
    """All that a run changes, and so what a checkpoint holds."""

    @property
    def step(self) -> int:
        """Steps, and so batches, done."""
        ...

    @property
    def tokens(self) -> int:
        """Rows seen."""
        ...

    @property
    def device(self) -> device:
        """The device of the state."""
        ...

    @property
    def room(self) -> Any:
        """For how many dead features a step on a GPU has room, where a checkpoint keeps that."""
        ...

    @property
    def since_fired(self) -> Int[Tensor, " features"]:
        """How many tokens each feature has seen since it last fired."""
        ...

    def dealt(self, shard: Shard, *, device: str) -> Any:
        """The state of this process's features, on a device."""
        ...

    def gathered(self, shard: Shard, *, dict_size: int) -> Any:
        """The whole state from every process's features, in main memory."""
        ...


class Kind(ABC):
    """One run's dictionary. States are of the kind's own class; ``take`` changes the one it is given."""

    def __init__(self, settings: ResolvedSettings, context: TrainingContext) -> None:
        self.settings = settings
        self.context = context

    @abstractmethod
    def first_state(self) -> Any:
        """Where training begins."""

    @abstractmethod
    def arrays_of(self, state: Any) -> dict[str, Tensor]:
        """The arrays of a state by name, as they lie in a checkpoint."""

    @abstractmethod
    def state_of(self, arrays: Mapping[str, Tensor], *, step: int, tokens: int) -> Any:
        """The inverse of ``arrays_of``."""

    @abstractmethod
    def prepare(self, state: Any) -> None:
        """Make what the steps write into."""

    @abstractmethod
    def take(
        self, state: Any, source: Float[Tensor, "rows d_source"], *, target: Float[Tensor, "rows d_target"]
    ) -> StepMetrics:
        """Advance a state by a batch, in training units."""

    @abstractmethod
    def held_out_fvu(self, state: Any) -> list[float]:
        """FVU of every prefix on ``context.held_out``."""

    @abstractmethod
    def save(self, state: Any, folder: Path, *, config: Mapping[str, Any]) -> dict[str, Any]:
        """Write what has been trained, in the caches' units; returns config.json."""

    @abstractmethod
    def samples(self, state: Any, settings: SampleSettings) -> Mapping[int | None, dict[str, np.ndarray]]:
        """What features fire on: the arrays of ``train.record.activation_samples``, by the layer that they read; None
        stands for the one layer there is."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What config.json says of where the dictionary comes from."""

    # Before a run: what it will take.

    @staticmethod
    @abstractmethod
    def parameters(settings: ResolvedSettings, units: Units) -> int:
        """Numbers that are trained."""

    @staticmethod
    @abstractmethod
    def features(settings: ResolvedSettings, units: Units) -> int:
        """Features in all."""

    @staticmethod
    @abstractmethod
    def timed_step(settings: ResolvedSettings, units: Units, *, device: str) -> Callable[[], StepMetrics]:
        """A step on random rows, all features alive, to be taken and timed."""
