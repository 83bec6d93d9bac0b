"""How many rows an evaluation takes at a time."""

import pytest
import torch

from evaluate import memory
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


@pytest.fixture
def dictionary() -> Transcoder:
    return Transcoder(**random_arrays(6, 5, dict_size=32), rule=TopK(3), prefixes=(8, 32))


def test_a_row_takes_its_code_and_every_prefixs_reconstruction(dictionary: Transcoder) -> None:
    assert memory.bytes_a_row(dictionary) == 4 * 3 * 32 + (4 * 2 + 32) * 5 + 32 * 6


@pytest.mark.parametrize(
    ("free_rows", "device", "expected"), [(1000, "cpu", 512), (1, "cpu", 64), (10**6, "cpu", 2048)]
)
def test_rows_are_a_power_of_two_within_bounds(
    dictionary: Transcoder, monkeypatch: pytest.MonkeyPatch, free_rows: int, device: str, expected: int
) -> None:
    """A quarter of what is free may be used."""
    free = 4 * free_rows * memory.bytes_a_row(dictionary)
    monkeypatch.setattr(memory, "free_memory", lambda _: free)
    assert memory.batch_rows_for(dictionary, device) == expected
    assert torch.tensor(expected).log2() % 1 == 0
