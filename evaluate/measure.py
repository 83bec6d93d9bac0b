"""Everything that the cache alone says about one dictionary: the metrics that ours and any other get alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader
from evaluate.config import EvaluateSettings
from evaluate.metrics.baselines import Baselines
from evaluate.metrics.fvu import Fit, fvu_replicates
from evaluate.metrics.metric import Metric, State
from evaluate.metrics.redundancy import redundancy
from evaluate.metrics.sparsity import Sparsity
from evaluate.metrics.top_contexts import TopContexts
from evaluate.replay import Replay
from transcoder.transcoder import Transcoder

_REDUNDANCY_BLOCK = 2048


@dataclass(frozen=True)
class Judgement:
    """``metrics`` as they stand in metrics.json, and what a comparison or the feature samples need beside them.

    ``fvu`` holds the estimate, then every bootstrap replicate; replicates of two dictionaries are paired.
    """

    metrics: dict[str, Any]
    fvu: Float[np.ndarray, "replicates_plus_one prefixes"]
    centre: Float[Tensor, " d_target"]
    states: Mapping[str, State]

    @property
    def mean_target(self) -> Float[Tensor, " d_target"]:
        """mu: the mean of the target over the evaluated rows."""
        fit = self.states["fit"]
        return self.centre + fit["S1"][0] / fit["N"][0]


def judge(
    replay: Replay, dictionary: Transcoder, *, reader: CacheReader, settings: EvaluateSettings, baselines: bool = True
) -> Judgement:
    """One pass over the held-out rows. The affine baseline belongs to the cache: a second dictionary needs it not."""
    metrics = streamed_metrics(dictionary, reader, settings=settings, device=replay.device, baselines=baselines)
    states = replay.run(dictionary, metrics)
    said = {name: metric.compute(states[name]) for name, metric in metrics.items() if name != "contexts"}
    if baselines:
        said["baselines"]["storage_floor"] = storage_floor(reader)
    return Judgement(
        metrics=_top_level(dictionary, said, masked=replay.held_out.masked),
        fvu=fvu_replicates(states["fit"]),
        centre=centre_of(reader, dictionary),
        states=states,
    )


def streamed_metrics(
    dictionary: Transcoder, reader: CacheReader, *, settings: EvaluateSettings, device: str, baselines: bool
) -> dict[str, Metric]:
    """Everything that one pass over the rows measures."""
    centre = centre_of(reader, dictionary)
    metrics: dict[str, Metric] = {
        "fit": Fit(centre, dictionary.prefixes, settings.bootstrap, settings.seed),
        "sparsity": Sparsity(dictionary.prefixes, settings.dead_mean_firings, device),
        "contexts": TopContexts(dictionary.dict_size, settings.sample_contexts, device),
    }
    if baselines:
        source_centre = _mean(reader.statistics.source.mean, device)
        metrics["baselines"] = Baselines(source_centre, centre, dictionary.b_dec)
    return metrics


def centre_of(reader: CacheReader, dictionary: Transcoder) -> Float[Tensor, " d_target"]:
    """A point near the mean of the target, to hold sums around: the cache's mean where it has one."""
    target, bias = reader.statistics.target, dictionary.b_dec
    return bias.double() if target is None else _mean(target.mean, str(bias.device))


def storage_floor(reader: CacheReader) -> float | None:
    """The FVU that the cache's own number format cost, measured as its held-out rows were written."""
    target = reader.split("held_out").statistics.target
    return None if target is None else target.storage_floor


def _mean(mean: Float[np.ndarray, " width"], device: str) -> Float[Tensor, " width"]:
    return torch.from_numpy(np.array(mean, dtype=np.float64)).to(device)


def _top_level(dictionary: Transcoder, said: Mapping[str, dict[str, Any]], *, masked: int) -> dict[str, Any]:
    sparsity = dict(said["sparsity"])
    return {
        "prefixes": list(dictionary.prefixes),
        **said["fit"],
        "l0": sparsity["l0"]["mean"],
        "l0_per_prefix": [prefix["mean"] for prefix in sparsity["l0_per_prefix"]],
        **{name: sparsity.pop(name) for name in ("dead_fraction", "dead_fraction_per_prefix", "dense_fraction")},
        "sparsity": sparsity,
        "redundancy": redundancy(dictionary.W_dec, dictionary.prefixes, block=_REDUNDANCY_BLOCK),
        "baselines": said.get("baselines"),
        "tokens_masked": masked,
    }
