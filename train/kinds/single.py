"""One layer's dictionary: a transcoder, or an autoencoder, which is one whose cache has the same side twice."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader
from common.distributed import Ranks
from train.arrays.graphs import Graphs
from train.arrays.optim import Moments
from train.arrays.parameters import Parameters, random_parameters
from train.arrays.units import Units
from train.arrays.workspace import Workspace
from train.config import SampleSettings
from train.context import TrainingContext
from train.initial import initial_weights
from train.kinds.kind import Kind
from train.objective import Recipe, rule_of
from train.record.activation_samples import sample_firings
from train.record.checkpoint import arrays_of, state_of
from train.record.held_out_fvu import held_out_fvu
from train.record.step_metrics import StepMetrics
from train.resolved import ResolvedSettings
from train.state import State
from train.step import train_step
from train.threshold import calibrated_rule, with_first_thresholds
from transcoder.formats.native import save_transcoder
from transcoder.rules.registry import RULES
from transcoder.transcoder import Transcoder

FROM_CACHE = ("model", "model_revision", "source_site", "target_site")


class Single(Kind):
    """A nested dictionary from a cache's source to its target."""

    def __init__(self, settings: ResolvedSettings, context: TrainingContext) -> None:
        super().__init__(settings, context)
        self._recipe = Recipe.from_settings(settings, variance=context.units.target_variance, device=context.device)
        self._workspace: Workspace | None = None
        self._graphs: Graphs | None = None

    def first_state(self) -> State:
        """No feature has been silent yet."""
        context = self.context
        weights = first_weights(self.settings, context.reader, context.units, device=context.home)
        return fresh_state(weights, self.settings)

    def arrays_of(self, state: State) -> dict[str, Tensor]:
        return arrays_of(state)

    def state_of(self, arrays: Mapping[str, Tensor], *, step: int, tokens: int) -> State:
        return state_of(arrays, step=step, tokens=tokens)

    def prepare(self, state: State) -> None:
        self._workspace = workspace_of(state.weights, self.settings)
        if self.context.device.startswith("cuda"):
            self._graphs = Graphs(self.context.device, self.context.progress)

    def take(
        self, state: State, source: Float[Tensor, "rows d_source"], *, target: Float[Tensor, "rows d_target"]
    ) -> StepMetrics:
        assert self._workspace is not None, "a state is prepared for first"
        return train_step(
            state,
            source,
            target=target,
            recipe=self._recipe,
            workspace=self._workspace,
            ranks=self.context.data_ranks,
            shard=self.context.shard,
            graphs=self._graphs,
        )

    def held_out_fvu(self, state: State) -> list[float]:
        context = self.context
        assert context.held_out is not None
        weights = plain_weights(state.weights, self.settings)
        return held_out_fvu(weights, context.held_out, nested=self._recipe.nested, shard=context.shard)

    def save(self, state: State, folder: Path, *, config: Mapping[str, Any]) -> dict[str, Any]:
        """In the cache's units."""
        return save_transcoder(self.transcoder(state), folder, config=config)

    def transcoder(self, state: State) -> Transcoder:
        """In the cache's units, with a threshold where the rule needs one."""
        settings = self.settings
        context = self.context
        weights = context.units.folded(plain_weights(state.weights, settings))
        rule = self._recipe.nested.rule_of(weights)
        rule = calibrated_rule(weights, rule, context.reader, view=settings.source, device=context.home)
        return Transcoder.from_arrays(
            weights.transcoder_arrays(), rule=rule, prefixes=settings.prefixes, source_view=settings.source
        )

    def samples(self, state: State, settings: SampleSettings) -> dict[int | None, dict[str, np.ndarray]]:
        return {None: sample_firings(self.transcoder(state), self.context.reader, settings)}

    def facts(self) -> dict[str, Any]:
        reader = self.context.reader
        return {
            **{key: reader.identity.get(key) for key in ("layer", *FROM_CACHE)},
            "kind": self.settings.kind,
            "side": self.settings.column,
            "gain": _numbers(reader, "gain"),
            "bias": _numbers(reader, "bias"),
        }

    @staticmethod
    def parameters(settings: ResolvedSettings, units: Units) -> int:
        d_source = units.source_mean.numel()
        return parameter_count(settings, d_source, units.width, skips_to=units.width)

    @staticmethod
    def features(settings: ResolvedSettings, units: Units) -> int:  # noqa: ARG004
        return settings.dict_size

    @staticmethod
    def timed_step(settings: ResolvedSettings, units: Units, *, device: str) -> Callable[[], StepMetrics]:
        d_source = units.source_mean.numel()
        state = random_state(settings, d_source, units.width, device=device)
        source, target = (torch.randn(settings.batch_rows, width, device=device) for width in (d_source, units.width))
        workspace = workspace_of(state.weights, settings)
        recipe = Recipe.from_settings(settings, variance=torch.ones(units.width), device=device)
        return lambda: train_step(state, source, target=target, recipe=recipe, workspace=workspace, ranks=Ranks())


def first_weights(settings: ResolvedSettings, reader: CacheReader, units: Units, *, device: str) -> Parameters:
    """Features from rows of the cache, in training units."""
    weights = initial_weights(
        reader,
        units,
        dict_size=settings.dict_size,
        skip=settings.skip,
        view=settings.source,
        seed=settings.seed,
        device=device,
    )
    if rule_of(settings).trains_threshold:
        weights = with_first_thresholds(
            weights, reader, units, view=settings.source, top_k=settings.top_k, device=device
        )
    return weights.reading_less_b_dec() if settings.subtract_b_dec else weights


def fresh_state(weights: Parameters, settings: ResolvedSettings) -> State:
    """The state of weights that no step was taken with."""
    since_fired = torch.zeros(settings.dict_size, dtype=torch.int64, device=weights.b_enc.device)
    return State(weights, Moments.zero(weights, beta1=settings.beta1), since_fired)


def plain_weights(weights: Parameters, settings: ResolvedSettings) -> Parameters:
    """Weights whose encoder reads the source as it is."""
    return weights.reading_less_b_dec(-1.0) if settings.subtract_b_dec else weights


def workspace_of(weights: Parameters, settings: ResolvedSettings) -> Workspace:
    """Room for the run's steps."""
    dtype = torch.bfloat16 if settings.compute_dtype == "bfloat16" else None
    return Workspace.like(weights, rows=settings.batch_rows, dtype=dtype, rule=rule_of(settings))


def parameter_count(settings: ResolvedSettings, d_source: int, d_target: int, *, skips_to: int) -> int:
    """Numbers of one layer's encoder, decoder, biases, thresholds and skip; ``d_target`` is all that a feature writes,
    of which the skip writes ``skips_to``."""
    thresholds = RULES[settings.activation].load().trains_threshold
    own = settings.dict_size * (d_source + d_target + 1 + thresholds) + d_target
    return own + settings.skip * d_source * skips_to


def random_state(
    settings: ResolvedSettings, d_source: int, d_target: int, *, device: str, skips_to: int | None = None
) -> State:
    """Random weights, to time steps with; the skip, where there is one, writes to ``skips_to`` dimensions (all)."""
    weights = random_parameters(d_source, d_target, dict_size=settings.dict_size).to(device)
    if settings.skip:
        weights = replace(weights, W_skip=torch.zeros(d_source, skips_to or d_target, device=device))
    if RULES[settings.activation].load().trains_threshold:
        # Of a standard normal distribution, which these pre-activations have.
        quantile = torch.tensor(1 - min(0.5, settings.top_k / settings.dict_size))
        weights = replace(weights, threshold=torch.special.ndtri(quantile).repeat(settings.dict_size).to(device))
    return fresh_state(weights, settings)


def _numbers(reader: CacheReader, name: str) -> list[float] | None:
    """A vector stored with the cache, as plain numbers."""
    return reader.arrays[name].astype(float).tolist() if name in reader.arrays else None
