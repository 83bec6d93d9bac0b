"""A cross-layer transcoder: its layers begin as transcoders of their own, and write to later layers as they learn to.

In training, rows of several layers come side by side (``cache/stacked.py``), each in its own units, in which every
layer's target varies by 1 a dimension. When it is saved, sources, targets and biases go back to the caches' units, and
activations stay as they are:

    W_enc_s    = W_enc_s' * source_scale_s
    W_dec_s->t = W_dec_s->t' / target_scale_t        b_dec_t = b_dec_t' / target_scale_t
    W_skip_t   = source_scale_t * W_skip_t' / target_scale_t
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cache.reader import CacheReader
from common.distributed import Ranks
from common.errors import MismatchError
from common.run_layout import RunFolders
from train.arrays.parameters import Parameters
from train.arrays.units import Units, scaled, units_of
from train.arrays.workspace import Workspace
from train.config import CommonTrainSettings, SampleSettings
from train.context import TrainingContext
from train.kinds.joint_held_out import joint_held_out_fvu
from train.kinds.joint_state import JointState
from train.kinds.joint_step import JointRecipe, joint_step
from train.kinds.kind import Kind
from train.kinds.single import (
    FROM_CACHE,
    first_weights,
    fresh_state,
    parameter_count,
    random_state,
    workspace_of,
)
from train.objective import Recipe
from train.record.activation_samples import sample_layers
from train.record.step_metrics import StepMetrics
from train.resolved import ResolvedSettings
from train.threshold import calibrated_rule
from transcoder.cross_layer import CrossLayerTranscoder, Reach, over_all_layers
from transcoder.formats.cross_layer import save_cross_layer
from transcoder.formats.native import load_transcoder
from transcoder.rules.rule import Rule
from transcoder.transcoder import Transcoder


@dataclass(frozen=True)
class JointUnits(Units):
    """Of caches whose rows lie side by side: every layer's own. ``width`` is that of one target."""

    layers: tuple[Units, ...]

    @staticmethod
    def of_readers(readers: Sequence[CacheReader], settings: CommonTrainSettings) -> "JointUnits":
        """Raises MismatchError where layers have targets of different widths."""
        layers = tuple(units_of(reader, settings.source, settings.scaling_of_source) for reader in readers)
        for reader, units in zip(readers, layers, strict=True):
            if units.width != layers[0].width:
                what = f"The target is {units.width} wide, and that of {readers[0].path} {layers[0].width}."
                raise MismatchError(what, where=reader.path)
        return JointUnits(
            source_scale=1.0,
            target_scale=1.0,
            source_mean=torch.cat([units.source_mean for units in layers]),
            target_mean=torch.cat([units.target_mean for units in layers]),
            target_variance=torch.cat([units.target_variance for units in layers]),
            layers=layers,
        )

    @property
    def width(self) -> int:
        """Dimensions of one layer's target."""
        return self.layers[0].width

    def source(self, rows: Float[Tensor, "rows d_source"]) -> Float[Tensor, "rows d_source"]:
        """Rows of all sources in training units, float32."""
        by_layer = rows.split([units.source_mean.numel() for units in self.layers], dim=1)
        return torch.cat(
            [units.source(layer_rows) for units, layer_rows in zip(self.layers, by_layer, strict=True)], dim=1
        )

    def target(self, rows: Float[Tensor, "rows d_target"]) -> Float[Tensor, "rows d_target"]:
        """Rows of all targets in training units, float32."""
        by_layer = rows.split(self.width, dim=1)
        return torch.cat(
            [units.target(layer_rows) for units, layer_rows in zip(self.layers, by_layer, strict=True)], dim=1
        )

    def reach(self, settings: ResolvedSettings) -> Reach:
        """What the features of each layer write to."""
        most = len(self.layers) - 1
        return Reach(len(self.layers), most if settings.window is None else min(settings.window, most), self.width)


class CrossLayer(Kind):
    """Nested dictionaries of several layers that share their reconstructions."""

    def __init__(self, settings: ResolvedSettings, context: TrainingContext) -> None:
        super().__init__(settings, context)
        assert isinstance(context.units, JointUnits)
        self._units = context.units
        self._reach = context.units.reach(settings)
        recipes = tuple(
            Recipe.from_settings(settings, variance=units.target_variance, device=context.device)
            for units in self._units.layers
        )
        self._recipe = JointRecipe(recipes, self._reach, settings.select_over == "layers")
        self._workspaces: list[Workspace] = []
        self._numbers = tuple(int(reader.identity["layer"]) for reader in context.readers)

    def first_state(self) -> JointState:
        """Every layer as a transcoder that writes to no other: a trained one where ``warm_start`` names it."""
        layers = [
            fresh_state(self._widened(self._own_weights(number), number), self.settings)
            for number in range(self._reach.layers)
        ]
        return JointState(tuple(layers), self._numbers)

    def _own_weights(self, number: int) -> Parameters:
        reader = self.context.readers[number]
        units = self._units.layers[number]
        if not self.settings.warm_start:
            return first_weights(self.settings, reader, units, device=self.context.home)
        folder = RunFolders.of_cache(reader.path).transcoder(self.settings.warm_start)
        return _trained_weights(folder, self.settings, reader, units).to(self.context.home)

    def _widened(self, weights: Parameters, number: int) -> Parameters:
        """With decoders of zeros to the other layers of the window."""
        more = self._reach.wide(number) - self._reach.width
        W_dec = torch.cat([weights.W_dec, weights.W_dec.new_zeros(len(weights.W_dec), more)], dim=1)
        return replace(weights, W_dec=W_dec, b_dec=torch.cat([weights.b_dec, weights.b_dec.new_zeros(more)]))

    def arrays_of(self, state: JointState) -> dict[str, Tensor]:
        return state.arrays()

    def state_of(self, arrays: Mapping[str, Tensor], *, step: int, tokens: int) -> JointState:
        return JointState.of_arrays(arrays, step=step, tokens=tokens)

    def prepare(self, state: JointState) -> None:
        self._workspaces = _workspaces(state, self.settings)

    def take(
        self, state: JointState, source: Float[Tensor, "rows d_source"], *, target: Float[Tensor, "rows d_target"]
    ) -> StepMetrics:
        return joint_step(
            state,
            self._by_layer(source),
            targets=target.split(self._reach.width, dim=1),
            recipe=self._recipe,
            workspaces=self._workspaces,
            ranks=self.context.data_ranks,
            shard=self.context.shard,
        )

    def _by_layer(self, source: Float[Tensor, "rows d_source"]) -> list[Float[Tensor, "rows width"]]:
        by_layer = source.split([units.source_mean.numel() for units in self._units.layers], dim=1)
        return [rows.contiguous() for rows in by_layer]

    def held_out_fvu(self, state: JointState) -> list[float]:
        """The mean over layers."""
        held_out = self.context.held_out
        assert held_out is not None
        return joint_held_out_fvu(
            state, held_out, by_layer=self._by_layer, recipe=self._recipe, shard=self.context.shard
        )

    def _rule(self, number: int, weights: Parameters) -> Rule:
        return self._recipe.recipes[number].nested.rule_of(weights)

    def _piece(self, weights: Parameters, rule: Rule) -> Transcoder:
        if self._recipe.over_layers:
            settings = self.settings
            rule = over_all_layers(settings.top_k, layers=self._reach.layers, dict_size=settings.dict_size)
        return Transcoder.from_arrays(
            weights.transcoder_arrays(), rule=rule, prefixes=self.settings.prefixes, source_view=self.settings.source
        )

    def _dictionary(self, pieces: Sequence[Transcoder]) -> CrossLayerTranscoder:
        return CrossLayerTranscoder(
            pieces,
            layers=self._numbers,
            window=self._reach.window,
            top_k=self.settings.top_k,
            over_layers=self._recipe.over_layers,
        )

    def save(self, state: JointState, folder: Path, *, config: Mapping[str, Any]) -> dict[str, Any]:
        """In the caches' units."""
        return save_cross_layer(self._in_cache_units(state), folder, config=config)

    def samples(self, state: JointState, settings: SampleSettings) -> dict[int | None, dict[str, np.ndarray]]:
        return {**sample_layers(self._in_cache_units(state), self.context.readers, settings)}

    def _in_cache_units(self, state: JointState) -> CrossLayerTranscoder:
        """With a threshold for every layer where the rule needs one."""
        pieces: list[Transcoder] = []
        for number, (layer, reader) in enumerate(zip(state.layers, self.context.readers, strict=True)):
            weights = self._folded(layer.weights, number)
            rule = self._rule(number, weights)
            rule = calibrated_rule(weights, rule, reader, view=self.settings.source, device=self.context.home)
            pieces.append(self._piece(weights, rule))
        return self._dictionary(pieces)

    def _folded(self, weights: Parameters, number: int) -> Parameters:
        """The same source layer in the caches' units, its activations as they are."""
        scales = [self._units.layers[layer].target_scale for layer in self._reach.written(number)]
        by_target = torch.tensor(scales, device=weights.b_dec.device).repeat_interleave(self._reach.width)
        units = self._units.layers[number]
        return replace(
            weights,
            W_enc=scaled(weights.W_enc, units.source_scale),
            W_dec=weights.W_dec / by_target,
            b_dec=weights.b_dec / by_target,
            W_skip=None if weights.W_skip is None else scaled(weights.W_skip, _of_skip(units)),
        )

    def facts(self) -> dict[str, Any]:
        identity = self.context.reader.identity
        return {
            **{key: identity.get(key) for key in FROM_CACHE},
            "target_scales": [units.target_scale for units in self._units.layers],
            "cache_fingerprints": [reader.fingerprint for reader in self.context.readers],
        }

    @staticmethod
    def parameters(settings: ResolvedSettings, units: Units) -> int:
        assert isinstance(units, JointUnits)
        reach = units.reach(settings)
        return sum(
            parameter_count(settings, own.source_mean.numel(), reach.wide(number), skips_to=reach.width)
            for number, own in enumerate(units.layers)
        )

    @staticmethod
    def features(settings: ResolvedSettings, units: Units) -> int:
        assert isinstance(units, JointUnits)
        return settings.dict_size * len(units.layers)

    @staticmethod
    def timed_step(settings: ResolvedSettings, units: Units, *, device: str) -> Callable[[], StepMetrics]:
        assert isinstance(units, JointUnits)
        reach = units.reach(settings)
        widths = [own.source_mean.numel() for own in units.layers]
        layers = [
            random_state(settings, width, reach.wide(number), device=device, skips_to=reach.width)
            for number, width in enumerate(widths)
        ]
        state = JointState(tuple(layers), tuple(range(reach.layers)))
        for layer in layers:
            layer.weights.b_dec.zero_()
        sources = [torch.randn(settings.batch_rows, width, device=device) for width in widths]
        targets = [torch.randn(settings.batch_rows, reach.width, device=device) for _ in widths]
        recipes = [Recipe.from_settings(settings, variance=torch.ones(reach.width), device=device) for _ in widths]
        recipe = JointRecipe(tuple(recipes), reach, settings.select_over == "layers")
        workspaces = _workspaces(state, settings)
        return lambda: joint_step(state, sources, targets=targets, recipe=recipe, workspaces=workspaces, ranks=Ranks())


def _workspaces(state: JointState, settings: ResolvedSettings) -> list[Workspace]:
    """Gradients of every layer; the pre-activations, one layer's at a time, share their memory."""
    workspaces = [workspace_of(layer.weights, settings) for layer in state.layers]
    for workspace in workspaces[1:]:
        workspace.pre = workspaces[0].pre
    return workspaces


def _trained_weights(folder: Path, settings: ResolvedSettings, reader: CacheReader, units: Units) -> Parameters:
    """A trained transcoder's weights in training units. Raises MismatchError where it does not fit."""
    trained = load_transcoder(folder)
    wanted = {"prefixes": list(settings.prefixes), "activation": settings.activation}
    wanted |= {"cache_fingerprint": reader.fingerprint, "source_view": settings.source, "skip": settings.skip}
    for key, value in wanted.items():
        if trained.config.get(key) != value:
            what = f"train.warm_start: {key} of the trained transcoder is {trained.config.get(key)}, not {value}."
            raise MismatchError(what, where=folder, remedy="Train the layers with the same settings, or leave it out.")
    arrays = {name: array.detach().clone() for name, array in trained.arrays().items()} | dict(trained.rule.arrays())
    threshold = arrays.pop("threshold", None) if trained.rule.trains_threshold else None
    arrays.pop("threshold", None)
    return replace(
        Parameters(**arrays),
        W_enc=scaled(arrays["W_enc"], units.target_scale / units.source_scale),
        b_enc=arrays["b_enc"] * units.target_scale,
        b_dec=arrays["b_dec"] * units.target_scale,
        W_skip=scaled(arrays["W_skip"], 1 / _of_skip(units)) if settings.skip else None,
        threshold=None if threshold is None else threshold * units.target_scale,
    )


def _of_skip(units: Units) -> float | Tensor:
    """What a layer's skip is multiplied by to be in the cache's units: a number, or one for each dimension it reads."""
    scale = units.source_scale
    return scale.double()[:, None] / units.target_scale if isinstance(scale, Tensor) else scale / units.target_scale
