"""What the ``evaluate:`` section refuses, and that its defaults are what a report says it was made with."""

import pytest
from pydantic import ValidationError

from evaluate.config import EvaluateSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_rows", 0),
        ("bootstrap", -1),
        ("bootstrap", 10**12),
        ("seed", 1 << 31),
        ("dead_mean_firings", 0.0),
        ("samples_per_group", 10**12),
        ("sample_contexts", 0),
        ("lm_tokens", 0),
        ("no_such_setting", 1),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        EvaluateSettings.model_validate({name: value})


def test_no_bootstrap_and_no_samples_are_allowed() -> None:
    settings = EvaluateSettings(bootstrap=0, samples_per_group=0)
    assert (settings.bootstrap, settings.samples_per_group) == (0, 0)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        EvaluateSettings().seed = 3
