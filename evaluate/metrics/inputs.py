"""The inputs that a metric can use."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader
from evaluate.config import EvaluateSettings
from evaluate.held_out import HeldOut
from transcoder.transcoder import Transcoder

Replicates = Float[np.ndarray, "replicates_plus_one prefixes"]
"""A number of every prefix: the estimate, then every bootstrap replicate. Those of two dictionaries are paired."""

AbsorptionScorer = Callable[[Transcoder], dict[str, Any]]
"""A dictionary to the ``absorption_first_letter`` fields."""

Splice = Callable[[Transcoder, Float[Tensor, " d_target"]], tuple[dict[str, Any], Replicates]]
"""A dictionary, and the target's mean, to the ``language_model`` fields and every prefix's rise in cross-entropy."""


@dataclass(frozen=True)
class MetricInputs:
    """``is_reference``: the dictionary is compared with ours. What belongs to the cache alone, such as the baselines,
    is then left out: it was measured with ours. ``splice`` is None without a language model."""

    dictionary: Transcoder
    held_out: HeldOut
    reader: CacheReader
    settings: EvaluateSettings
    device: str
    absorption: AbsorptionScorer
    splice: Splice | None = None
    is_reference: bool = False

    @property
    def centre(self) -> Float[Tensor, " d_target"]:
        """The held-out mean of the target as the cache knows it, on the device: sums are kept around it."""
        return self.held_out.mean_target.to(self.device)
