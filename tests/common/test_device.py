"""Device names, and what a device can do."""

import pytest
import torch

from common.device import choose_device, free_memory, has_bfloat16, peak_memory, wake
from common.errors import UsageError


def test_auto_is_an_available_device() -> None:
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert free_memory(choose_device("auto")) > 0


def test_a_missing_device_is_refused_with_the_available_ones() -> None:
    with pytest.raises(UsageError, match="auto, cpu"):
        choose_device("cuda:99")


def test_a_cpu_is_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "mm")
    wake(torch.device("cpu"), torch.float32)


def test_the_peak_does_not_fall_with_what_is_freed() -> None:
    array = bytearray(b"x" * 50_000_000)
    peak = peak_memory()
    assert peak > len(array)
    del array
    assert peak_memory() >= peak


@pytest.mark.parametrize(("capability", "has"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)])
def test_bfloat16_is_available_from_ampere_on(
    capability: tuple[int, int], has: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert has_bfloat16("cuda:0") is has
    assert not has_bfloat16("cpu")
