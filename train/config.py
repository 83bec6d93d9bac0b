"""Settings of the training stage, the presets that fill them in, and the arithmetic they must satisfy.

``prefixes`` are cumulative ends, [768, 2304, 5376, 12288]; ``group_sizes`` are the disjoint sizes between them,
[768, 1536, 3072, 6912]. They are two keys, and which one is meant is never inferred from the numbers.
"""

import json
import math
import re
from itertools import accumulate, pairwise
from pathlib import PurePath
from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from common.errors import UsageError
from common.settings import Settings
from transcoder.rules.registry import trainable


def _sixteenfold(width: int, top_k: int) -> dict[str, Any]:
    """A dictionary of 16 times the width in groups of 1, 2, 4 and 9 times it."""
    return {"group_sizes": (width, 2 * width, 4 * width, 9 * width), "top_k": top_k}


PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": _sixteenfold(768, 64),
    "gpt2-medium": _sixteenfold(1024, 64),
    "gpt2-large": _sixteenfold(1280, 64),
    "gpt2-xl": _sixteenfold(1600, 64),
    "gemma-2-2b": _sixteenfold(2304, 96),
    "gemma-2-9b": _sixteenfold(3584, 96),
    "gemma-2-27b": _sixteenfold(4608, 96),
    "layer-18432": {"group_sizes": (1152, 2304, 4608, 10368), "top_k": 96},
    "layer-18432-five-groups": {"group_sizes": (1152, 2073, 3732, 6718, 4757), "top_k": 96},
}
_NESTING = ("prefixes", "group_sizes")


class LogSettings(Settings):
    """Where training figures go besides metrics.jsonl, which is always written."""

    wandb: bool = False
    """Mirror the figures to Weights & Biases. Its key comes from its own login, never from here."""
    wandb_project: str = "nestcoder"
    wandb_mode: Literal["online", "offline"] | None = None
    """None leaves it to the WANDB_MODE variable that wandb itself reads."""


class TrainSettings(Settings):
    """How a nested transcoder is trained. With neither ``prefixes`` nor ``group_sizes`` nor a preset, the dictionary is
    16 times the target's width, or ``dict_size``, in groups of 1/16, 2/16, 4/16 and 9/16."""

    preset: str = "auto"
    """A name of PRESETS, ``none``, or ``auto``: the one named like the cache's model and made for its width,
    where there is one. Keys that are given win over the preset's."""
    dict_size: PositiveInt | None = None
    """Features in all. Follows from ``prefixes`` or ``group_sizes`` where those are given, and must then agree."""
    prefixes: tuple[PositiveInt, ...] | None = None
    """Cumulative ends of the prefixes, strictly increasing, the last one the dictionary's size."""
    group_sizes: tuple[PositiveInt, ...] | None = None
    """Disjoint sizes of the groups between the prefixes."""
    prefix_weights: tuple[PositiveFloat, ...] | None = None
    """What each prefix counts in the loss, scaled to sum to 1; equal where not given."""
    top_k: PositiveInt | None = None
    """Active features a row; 16 where neither this nor a preset says."""
    activation: str = "topk"
    """A selection rule by its name: ``topk`` keeps the largest of every row, ``batchtopk`` of the whole batch,
    over all processes that share it, and stores a threshold to evaluate by."""
    skip: bool = False
    """Add an affine map of the source, zero at first, to every prefix."""
    source: Literal["mlp_in", "ln2_normalized"] = "mlp_in"
    """What the encoder reads: the cache's source as it is stored, or an MLP's input before its norm's gain and bias."""
    seed: NonNegativeInt = 0
    """Of the initial weights."""
    order_seed: NonNegativeInt = 0
    """Of the order in which rows are read."""

    steps: PositiveInt = 3000
    batch_rows: PositiveInt = 2048
    """Rows a step, over all processes; rows of special tokens among them are left out."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the matrix products; master weights and the optimiser are always float32."""
    optimizer: Literal["adam", "adamw"] = "adam"
    lr: PositiveFloat | None = None
    """The full rate; 0.04 / sqrt(width of the target) where not given, so 0.004 at 96 and 0.0014 at 768."""
    min_lr: NonNegativeFloat = 0.0
    """What linear and cosine schedules arrive at on the last step."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: NonNegativeInt = 100
    decay_steps: PositiveInt | None = None
    """Length of the decay, at the end of the run; all steps after the warm-up where not given."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled (adamw) or added to the gradient (adam); of the encoder and the skip alone."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest norm of the whole gradient."""

    aux_alpha: NonNegativeFloat = 1 / 32
    """Weight of the auxiliary loss that revives dead features; 0 leaves it out."""
    aux_top_k: PositiveInt | None = None
    """Dead features a row that the auxiliary loss uses; half the target's width where not given."""
    dead_after_tokens: PositiveInt | None = None
    """Tokens without firing that make a feature dead; 5 % of the planned tokens, at least 1 M and at most 10 M."""

    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt = 500
    keep: PositiveInt = 2
    """Newest checkpoints kept, besides the best by held-out FVU."""
    held_out_rows: NonNegativeInt = 16_384
    """Held-out rows that every checkpoint is judged on; 0 keeps no best."""
    shard_dictionary: bool = False
    """Deal the features over the processes of torchrun instead of the rows."""
    sweep: tuple[dict[str, Any], ...] = ()
    """Further transcoders from the same reading of the cache: each a name and what it sets otherwise."""

    @model_validator(mode="after")
    def _check(self) -> "TrainSettings":
        _check_preset(self)
        _check_activation(self)
        _check_nesting(self)
        _check_weights(self)
        _check_schedule(self)
        return self

    def resolved(self, *, model: str, d_target: int) -> "TrainSettings":
        """The same with dictionary, prefixes and top_k stated: what a run records, and equal for equal runs."""
        preset = self._preset(PurePath(model).name, width=d_target)
        ends = self.boundaries
        if ends is None and self.dict_size is None and preset:
            ends = tuple(accumulate(preset["group_sizes"]))
        ends = ends or _ends_of_width(self.dict_size or 16 * d_target)
        top_k = self.top_k or preset.get("top_k", 16)
        exact = {"preset": "none", "group_sizes": None, "prefixes": ends, "dict_size": ends[-1], "top_k": top_k}
        return settings_of(self.model_dump() | exact | {"lr": self.lr or 0.04 / math.sqrt(d_target)})

    def _preset(self, model: str, *, width: int) -> dict[str, Any]:
        """The preset's values, empty without one."""
        if self.preset != "auto":
            return PRESETS.get(self.preset, {})
        named = PRESETS.get(model, {})
        return named if sum(named.get("group_sizes", ())) == 16 * width else {}

    @property
    def boundaries(self) -> tuple[int, ...] | None:
        """The cumulative prefixes, where they are stated in either form."""
        return tuple(accumulate(self.group_sizes)) if self.group_sizes else self.prefixes


def settings_of(values: dict[str, Any], *, where: str = "train") -> TrainSettings:
    """Settings from plain values. Raises UsageError where they make no sense."""
    try:
        return TrainSettings.model_validate_json(json.dumps(values))
    except ValidationError as error:
        problems = "; ".join(str(problem["msg"]).removeprefix("Value error, ") for problem in error.errors())
        raise UsageError(problems, where=where) from error


def _check_preset(settings: TrainSettings) -> None:
    """A preset must be one of those there are."""
    if settings.preset not in ("auto", "none", *PRESETS):
        raise ValueError(f"preset {settings.preset!r} is unknown; there are auto, none, {', '.join(PRESETS)}")


def _check_activation(settings: TrainSettings) -> None:
    """Refuse a selection rule that is unknown, or that training does not have."""
    if settings.activation not in trainable():
        raise ValueError(f"activation {settings.activation!r} is unknown; there are {', '.join(trainable())}")


def _check_nesting(settings: TrainSettings) -> None:
    """Refuse nesting that is stated twice, does not increase, or does not add up, with the sums."""
    if settings.prefixes and settings.group_sizes:
        raise ValueError("prefixes and group_sizes are two ways to say the same: give one")
    ends = settings.boundaries
    if ends is None:
        return
    if not ends:
        raise ValueError("prefixes is empty: give at least the dictionary's size")
    if any(later <= earlier for earlier, later in pairwise(ends)):
        raise ValueError(f"prefixes {list(ends)} are cumulative and must increase strictly{_groups_hint(ends)}")
    if settings.dict_size not in (None, ends[-1]):
        raise ValueError(
            f"{_sum_of(settings)}, but dict_size is {settings.dict_size}{_groups_hint(ends, settings.dict_size)}"
        )
    if settings.top_k is not None and settings.top_k > ends[0]:
        raise ValueError(
            f"top_k {settings.top_k} exceeds the first prefix, {ends[0]} features: a row could use all of it, "
            f"and it would learn no code; take a top_k of at most {ends[0]} or a larger first prefix"
        )


def _sum_of(settings: TrainSettings) -> str:
    """The arithmetic behind the size that prefixes or groups imply."""
    if settings.group_sizes:
        return f"group_sizes {' + '.join(map(str, settings.group_sizes))} = {sum(settings.group_sizes)}"
    return f"the last of prefixes {list(settings.prefixes or ())} is {(settings.prefixes or (0,))[-1]}"


def _groups_hint(ends: tuple[int, ...], dict_size: int | None = None) -> str:
    """Point at the other key where the same numbers would make sense as groups."""
    makes_sense = sum(ends) == dict_size if dict_size else ends != tuple(sorted(ends))
    return f"; as group_sizes they would add up to {sum(ends)}" if makes_sense else ""


def _check_weights(settings: TrainSettings) -> None:
    """One weight a prefix."""
    ends, weights = settings.boundaries, settings.prefix_weights
    if ends and weights and len(weights) != len(ends):
        raise ValueError(f"{len(weights)} prefix_weights for {len(ends)} prefixes")


def _check_schedule(settings: TrainSettings) -> None:
    """Warm-up and decay must fit into the run, and the rate must fall."""
    decay = settings.decay_steps or 0
    if settings.warmup_steps + decay > settings.steps:
        raise ValueError(
            f"warmup_steps {settings.warmup_steps} + decay_steps {decay} = {settings.warmup_steps + decay}, "
            f"more than the {settings.steps} steps of the run"
        )
    if settings.lr is not None and settings.min_lr > settings.lr:
        raise ValueError(f"min_lr {settings.min_lr} exceeds lr {settings.lr}")


def _ends_of_width(dict_size: int) -> tuple[int, ...]:
    """Groups of 1/16, 2/16, 4/16 and 9/16 of a dictionary."""
    if dict_size % 16:
        raise UsageError(
            f"dict_size {dict_size} does not divide into the default groups of 1/16, 2/16, 4/16 and 9/16",
            remedy=f"Give train.prefixes or train.group_sizes, or a multiple of 16 such as {16 * -(-dict_size // 16)}",
        )
    return tuple(dict_size * share // 16 for share in (1, 3, 7, 16))


def dead_after_tokens(settings: TrainSettings) -> int:
    """Tokens without firing after which a feature counts as dead."""
    planned = settings.steps * settings.batch_rows
    return settings.dead_after_tokens or max(1_000_000, min(10_000_000, planned // 20))


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_TAKEN = {"checkpoints", "metrics.jsonl", "transcoder.safetensors", "config.json", "wandb"}


def members(settings: TrainSettings) -> dict[str, TrainSettings]:
    """The transcoders of a run by name: the settings themselves under "", then each of the sweep.

    A member's reading of the cache must be the run's own: the same rows, batches, view and number of steps.
    """
    plain = settings.model_dump() | {"sweep": ()}
    found = {"": settings_of(plain)}
    for override in settings.sweep:
        name = override.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in {*found, *_TAKEN}:
            remedy = "Use letters, digits, '.', '-' and '_', and no name of a run's own files."
            raise UsageError(f"a sweep entry needs a name of its own, not {name!r}", where="train.sweep", remedy=remedy)
        found[name] = _member(plain, {key: value for key, value in override.items() if key != "name"}, name=name)
    return found


_READING = ("source", "order_seed", "steps", "batch_rows", "held_out_rows", "shard_dictionary", "sweep")


def _member(plain: dict[str, Any], override: dict[str, Any], *, name: str) -> TrainSettings:
    """One entry of a sweep: nesting given in one form replaces the run's in any form."""
    forbidden = [key for key in _READING if key in override]
    if forbidden:
        raise UsageError(
            f"a sweep shares one reading of the cache, so {name!r} cannot set {', '.join(forbidden)}",
            where="train.sweep",
        )
    stated = {*_NESTING, "dict_size"} & override.keys()
    replaced: dict[str, Any] = dict.fromkeys((*_NESTING, "dict_size"), None) if stated else {}
    return settings_of(plain | replaced | override, where=f"train.sweep, {name}")
