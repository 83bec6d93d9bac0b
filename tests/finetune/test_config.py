"""What the ``finetune:`` section refuses."""

import pytest
from pydantic import ValidationError

from finetune.config import FinetuneSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens", 0),
        ("batch_contexts", 0),
        ("kl_weight", -0.1),
        ("lr", 0.0),
        ("warmup_steps", -1),
        ("seed", 1 << 31),
        ("checkpoint_every", 0),
        ("no_such_setting", 1),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        FinetuneSettings.model_validate({name: value})


def test_the_divergence_can_be_left_out() -> None:
    assert FinetuneSettings(kl_weight=0, warmup_steps=0).kl_weight == 0
