"""What a device's name means here, and what is free there."""

import pytest
import torch

from common.device import choose_device, free_memory
from common.errors import UsageError


def test_auto_is_the_first_card_or_the_cpu() -> None:
    expected = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto") == torch.device(expected)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["toaster", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(UsageError, match="There is no device") as caught:
        choose_device(name)
    assert "auto, cpu" in caught.value.remedy


def test_the_processor_has_free_memory() -> None:
    assert 10**6 < free_memory("cpu") < 10**15
