"""Resolved settings: with everything that follows from the presets and the cache. And the settings of a sweep's
members.

A run records them in config.json and in its checkpoints. ``read_record`` reads such a record, also one of an earlier
release: what it does not name has the value of that time.
"""

import json
import math
import re
from collections.abc import Mapping
from itertools import accumulate
from pathlib import PurePath
from typing import Any, Literal

from pydantic import NonNegativeFloat, PositiveFloat, ValidationError, model_validator

from common.errors import MismatchError, UsageError
from train.config import (
    CommonTrainSettings,
    Count,
    CountOrZero,
    Tokens,
    TrainSettings,
    check_min_lr,
    presets,
)
from train.nesting import check_top_k

ComputeDtype = Literal["float32", "bfloat16"]

_DEFAULT_TOP_K = 16
"""For a model without a preset."""
_DEFAULT_WARMUP_STEPS = 100
"""For a run that does not set train.warmup_steps."""
_ROUNDING = 1e-9
"""Weights that sum to 1 up to this were scaled before, and are kept as they are."""
_EARLIER_DEFAULTS = {"revive": False, "dimension_balance": 0.0, "source_scaling": "whole"}
"""What earlier releases did, if their records do not say it and the default has changed since."""


class ResolvedSettings(CommonTrainSettings):
    """The settings that a training uses. No key is open, and equal runs have equal resolved settings."""

    prefixes: tuple[Count, ...]
    prefix_weights: tuple[NonNegativeFloat, ...]
    """One a prefix; they sum to 1."""
    top_k: Count
    compute_dtype: ComputeDtype
    lr: PositiveFloat
    warmup_steps: CountOrZero
    sparsity_warmup_steps: CountOrZero
    decay_steps: Count
    aux_top_k: Count
    dead_after_tokens: Tokens

    @model_validator(mode="after")
    def _check(self) -> "ResolvedSettings":
        check_top_k(self.top_k, first_prefix=self.prefixes[0])
        check_min_lr(self.min_lr, lr=self.lr)
        if len(self.prefix_weights) != len(self.prefixes):
            raise ValueError(f"{len(self.prefix_weights)} prefix_weights for {len(self.prefixes)} prefixes")
        return self

    @property
    def dict_size(self) -> int:
        """Features in all."""
        return self.prefixes[-1]

    def record(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"dict_size": self.dict_size, **self.model_dump(mode="json")}


def resolve(
    settings: TrainSettings, *, model: str, d_target: int, device_dtype: ComputeDtype = "float32"
) -> ResolvedSettings:
    """Fill in what follows from the cache's ``model``, the target's width and the device.

    ``device_dtype`` is the meaning of ``auto``. Raises UsageError if the settings cannot work.
    """
    preset = _preset(settings, PurePath(model).name, width=d_target)
    prefixes = _prefixes(settings, preset, d_target=d_target)
    warmup_steps = _warmup_steps(settings)
    shared = {key: getattr(settings, key) for key in CommonTrainSettings.model_fields}
    values = shared | {
        "prefixes": prefixes,
        "prefix_weights": _weights(settings.prefix_weights, count=len(prefixes)),
        "top_k": settings.top_k or preset.get("top_k", _DEFAULT_TOP_K),
        "compute_dtype": device_dtype if settings.compute_dtype == "auto" else settings.compute_dtype,
        "lr": settings.lr or 0.016 / d_target**0.25,
        "warmup_steps": warmup_steps,
        "sparsity_warmup_steps": _or_else(settings.sparsity_warmup_steps, _sparsity_warmup_steps(settings)),
        "decay_steps": settings.decay_steps or max(1, settings.steps - warmup_steps),
        "aux_top_k": settings.aux_top_k or max(1, d_target // 2),
        "dead_after_tokens": settings.dead_after_tokens or _dead_after_tokens(settings),
    }
    try:
        return ResolvedSettings.model_validate(values)
    except ValidationError as error:
        raise UsageError(_problems(error), where="train") from error


def read_record(record: Any, *, d_target: int, location: object) -> ResolvedSettings:
    """The settings of a run from its record. Raises MismatchError if this release does not know them."""
    try:
        before = _EARLIER_DEFAULTS | {"lr": 0.04 / math.sqrt(d_target)}
        left_open = {key: value for key, value in before.items() if record.get(key) is None}
        stated = TrainSettings.model_validate_json(json.dumps(record | left_open))
        return resolve(stated, model="", d_target=d_target)
    except (ValidationError, UsageError) as error:
        problems = _problems(error) if isinstance(error, ValidationError) else error.what
        raise MismatchError(f"This release does not know this run's settings: {problems}.", where=location) from error


def _sparsity_warmup_steps(settings: TrainSettings) -> int:
    """A tenth of the run; 0 if there is no penalty, so that such a run can get more steps."""
    return settings.steps // 10 if settings.activation == "jumprelu" else 0


def _preset(settings: TrainSettings, model: str, *, width: int) -> dict[str, Any]:
    """The preset's values, empty without one."""
    if settings.preset != "auto":
        return presets().get(settings.preset, {})
    named = presets().get(model, {})
    return named if sum(named.get("group_sizes", ())) == 16 * width else {}


def _prefixes(settings: TrainSettings, preset: Mapping[str, Any], *, d_target: int) -> tuple[int, ...]:
    """The given prefixes, else the preset's, else shares of the dictionary."""
    if settings.boundaries:
        return settings.boundaries
    if settings.dict_size is None and preset:
        return tuple(accumulate(preset["group_sizes"]))
    dict_size = settings.dict_size or 16 * d_target
    if dict_size % 16:
        raise UsageError(
            f"A dict_size of {dict_size} cannot be split into the default groups of 1/16, 2/16, 4/16 and 9/16.",
            remedy=f"Give train.prefixes or train.group_sizes, or a multiple of 16 such as {16 * -(-dict_size // 16)}.",
        )
    return tuple(dict_size * share // 16 for share in (1, 3, 7, 16))


def _weights(stated: tuple[float, ...] | None, *, count: int) -> tuple[float, ...]:
    """Weights that sum to 1; if they do already, they keep every bit, so that a record resolves to itself."""
    if not stated:
        return (1.0 / count,) * count
    total = sum(stated)
    return stated if abs(total - 1) < _ROUNDING else tuple(weight / total for weight in stated)


def _warmup_steps(settings: TrainSettings) -> int:
    """A default that leaves steps for the rest of a short run."""
    if settings.warmup_steps is not None:
        return settings.warmup_steps
    return min(_DEFAULT_WARMUP_STEPS, (settings.steps - (settings.decay_steps or 0)) // 2)


def _or_else(stated: int | None, otherwise: int) -> int:
    return otherwise if stated is None else stated


def _dead_after_tokens(settings: TrainSettings) -> int:
    """A twentieth of the run, within limits: long enough for a rare feature, short enough that revived ones can
    learn."""
    planned = settings.steps * settings.batch_rows
    return max(1_000_000, min(10_000_000, planned // 20))


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RESERVED_NAMES = {"checkpoints", "metrics.jsonl", "transcoder.safetensors", "config.json", "wandb"}
_SHARED_KEYS = (
    "kind",
    "side",
    "source",
    "source_scaling",
    "order_seed",
    "steps",
    "batch_rows",
    "held_out_rows",
    "shard_dictionary",
    "sweep",
)
_NESTING = ("prefixes", "group_sizes", "dict_size")


def members(settings: TrainSettings) -> dict[str, TrainSettings]:
    """The transcoders of a run by name: the settings themselves under "", then each of the sweep.

    All members read the same rows in the same batches, with one view and one number of steps.
    """
    plain = settings.model_dump() | {"sweep": ()}
    found = {"": _settings_of(plain, location="train")}
    for override in settings.sweep:
        name = override.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in {*found, *_RESERVED_NAMES}:
            remedy = "Use letters, digits, '.', '-' and '_', but not the name of one of the run's own files."
            raise UsageError(f"A sweep entry needs a new name, not {name!r}.", where="train.sweep", remedy=remedy)
        found[name] = _member(plain, {key: value for key, value in override.items() if key != "name"}, name=name)
    return found


def _member(plain: dict[str, Any], override: dict[str, Any], *, name: str) -> TrainSettings:
    """One entry of a sweep: prefixes in one form replace the run's prefixes in any form."""
    forbidden = [key for key in _SHARED_KEYS if key in override]
    if forbidden:
        raise UsageError(
            f"All entries of a sweep read the cache together, so {name!r} cannot set {', '.join(forbidden)}.",
            where="train.sweep",
        )
    replaced: dict[str, Any] = dict.fromkeys(_NESTING, None) if override.keys() & set(_NESTING) else {}
    return _settings_of(plain | replaced | override, location=f"train.sweep, {name}")


def _settings_of(values: dict[str, Any], *, location: str) -> TrainSettings:
    """Settings from plain values. Raises UsageError that names each wrong key."""
    try:
        return TrainSettings.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise UsageError(_problems(error), where=location) from error


def _problems(error: ValidationError) -> str:
    """Every problem of some settings, with its key."""
    found: list[str] = []
    for problem in error.errors():
        key = ".".join(str(step) for step in problem["loc"])
        message = str(problem["msg"]).removeprefix("Value error, ")
        found.append(f"{key}: {message}" if key else message)
    return "; ".join(found)
