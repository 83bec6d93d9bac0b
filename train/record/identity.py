"""What a run is: its settings and its cache. A run goes on only from a checkpoint with the same.

One difference is allowed. A run may get more steps if that changes nothing that was done already: every learning rate
before the checkpoint's step must be the same with both settings. That is so for a constant rate, and before the decay
(``decay_steps``) begins. Such a run gives the same result as one that had all steps from the start.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.errors import DamagedError, MismatchError
from train.arrays.optim import learning_rate
from train.resolved import ResolvedSettings, read_record

_RATE_SETTINGS = {"steps", "warmup_steps", "decay_steps", "schedule", "lr", "min_lr"}
_REMEDY = "Use the settings of its first start, give the run another name, or start again with --fresh."


@dataclass(frozen=True)
class RunIdentity:
    """``d_target`` is the target's width, from which some settings of an earlier release's record follow."""

    settings: ResolvedSettings
    cache_fingerprint: str
    d_target: int

    def record(self) -> dict[str, Any]:
        """Plain values, as in config.json and in every checkpoint."""
        return {"settings": self.settings.record(), "cache_fingerprint": self.cache_fingerprint}

    def is_of(self, record: Mapping[str, Any], *, location: object) -> bool:
        """Whether a complete run is this run; False if it has fewer steps and may be extended.

        Raises MismatchError that names each difference, for the record of another run.
        """
        before = self._settings_of(record, location=location)
        if before.steps < self.settings.steps:
            self._check(record, ignored=_RATE_SETTINGS, location=location)
            return False
        self._check(record, ignored=set(), location=location)
        return True

    def goes_on_from(self, record: Mapping[str, Any], *, step: int, location: object) -> bool:
        """Whether the run may go on from a checkpoint of ``step``; False if only its learning rates were different.

        Raises MismatchError that names each difference, for the checkpoint of another run.
        """
        before = self._settings_of(record, location=location)
        if before.steps >= self.settings.steps:
            self._check(record, ignored=set(), location=location)
            return True
        self._check(record, ignored=_RATE_SETTINGS, location=location)
        now = self.settings
        return all(learning_rate(before, number) == learning_rate(now, number) for number in range(step))

    def _check(self, record: Mapping[str, Any], *, ignored: set[str], location: object) -> None:
        """Raise MismatchError that names each difference, except in the settings that are ``ignored``."""
        before = self._settings_of(record, location=location).record()
        now = json.loads(json.dumps(self.settings.record()))
        for key in ignored:
            now[key] = before[key]
        changed = differences(
            {"settings": before, "cache_fingerprint": record.get("cache_fingerprint")},
            {"settings": now, "cache_fingerprint": self.cache_fingerprint},
        )
        if changed:
            what = f"This run was made with other settings or another cache: {'; '.join(changed)}."
            raise MismatchError(what, where=location, remedy=_REMEDY)

    def _settings_of(self, record: Mapping[str, Any], *, location: object) -> ResolvedSettings:
        if not isinstance(record.get("settings"), dict):
            raise DamagedError("The run's record has no settings.", where=location, remedy=_REMEDY)
        return read_record(record["settings"], d_target=self.d_target, location=location)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """Every entry that differs, in words."""
    found: list[str] = []
    for key in before.keys() | now.keys():
        old = before.get(key)
        new = now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, prefix=f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old}, is now {new}")
    return sorted(found)
