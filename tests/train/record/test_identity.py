"""Which record belongs to which run, and when a run may get more steps."""

from typing import Any

import pytest

from common.errors import DamagedError, MismatchError
from train.config import TrainSettings
from train.record.identity import RunIdentity
from train.resolved import resolve


def identity(fingerprint: str = "abc", **values: Any) -> RunIdentity:
    stated = TrainSettings.model_validate({"prefixes": (16, 64), "top_k": 4, "lr": 0.01, "steps": 1000} | values)
    return RunIdentity(resolve(stated, model="m", d_target=8), cache_fingerprint=fingerprint, d_target=8)


def test_a_record_is_of_its_own_run() -> None:
    record = identity().record()
    assert identity().is_of(record, location="here")
    assert identity().goes_on_from(record, step=500, location="here")


def test_every_difference_is_named() -> None:
    with pytest.raises(MismatchError) as caught:
        identity("xyz", lr=0.02).is_of(identity().record(), location="here")
    changes = "cache_fingerprint was abc, is now xyz; settings.lr was 0.01, is now 0.02"
    assert caught.value.what == f"This run was made with other settings or another cache: {changes}."


def test_a_record_without_settings_is_damaged() -> None:
    with pytest.raises(DamagedError, match="has no settings"):
        identity().is_of({"cache_fingerprint": "abc"}, location="here")


@pytest.mark.parametrize(
    ("before", "now", "step", "goes_on"),
    [
        ({"schedule": "constant"}, {"schedule": "constant", "steps": 2000}, 1000, True),
        ({"schedule": "constant"}, {"steps": 2000, "decay_steps": 500}, 1000, True),
        ({"schedule": "constant"}, {"steps": 1200, "decay_steps": 400}, 1000, False),
        ({"schedule": "constant"}, {"steps": 1200, "decay_steps": 400}, 800, True),
        ({"decay_steps": 200}, {"steps": 2000, "decay_steps": 200}, 800, True),
        ({"decay_steps": 200}, {"steps": 2000, "decay_steps": 200}, 801, False),
        ({}, {"steps": 2000}, 50, True),
        ({}, {"steps": 2000}, 500, False),
    ],
)
def test_more_steps_are_allowed_if_no_earlier_learning_rate_would_change(
    before: dict[str, Any], now: dict[str, Any], step: int, goes_on: bool
) -> None:
    record = identity(**before).record()
    assert not identity(**now).is_of(record, location="here")
    assert identity(**now).goes_on_from(record, step=step, location="here") is goes_on


def test_more_steps_do_not_excuse_another_difference() -> None:
    with pytest.raises(MismatchError, match=r"cache: settings.top_k was 4, is now 5\."):
        identity(schedule="constant", steps=2000, top_k=5).is_of(identity().record(), location="here")


def test_fewer_steps_are_another_run() -> None:
    with pytest.raises(MismatchError, match=r"settings.steps was 1000, is now 500\."):
        identity(steps=500, schedule="constant").is_of(identity(schedule="constant").record(), location="here")
