"""What the ``features:`` section refuses."""

import pytest
from pydantic import ValidationError

from evaluate.features.config import FeatureSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("split", "test"),
        ("rows", 0),
        ("block_rows", 0),
        ("seed", -1),
        ("top_contexts", 0),
        ("intervals", 0),
        ("context_tokens", -1),
        ("relatives", 0),
        ("no_such_setting", 1),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        FeatureSettings.model_validate({name: value})


def test_contexts_of_every_kind_but_the_strongest_can_be_left_out() -> None:
    settings = FeatureSettings(interval_contexts=0, uniform_contexts=0, silent_contexts=0, checked_contexts=0)
    assert settings.top_contexts > 0
