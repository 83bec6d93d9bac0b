"""The feed changes neither order nor values, and sends a batch while the one before it is in use."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.loader import Batch, Loader
from cache.reader import CacheReader
from train.arrays.feed import Feed

DEVICES = ["cpu", *[pytest.param("cuda", marks=pytest.mark.gpu)] * torch.cuda.is_available()]


@pytest.mark.parametrize("device", DEVICES)
def test_a_feed_gives_the_batches_of_the_loader(small_cache: Path, device: str) -> None:
    reader = CacheReader.open(small_cache)
    pinned = device == "cuda"
    with Loader(reader, batch_rows=48, seed=2, epochs=1) as plain:
        expected = list(plain)
    with Loader(reader, batch_rows=48, seed=2, epochs=1, pin_memory=pinned) as loader:
        found = list(Feed(loader, torch.device(device)))
    assert [batch.index for batch in found] == list(range(21)) == [batch.index for batch in expected]
    for loaded, fed in zip(expected, found, strict=True):
        assert fed.source.device.type == fed.target.device.type == device
        assert torch.equal(fed.source.cpu(), loaded.source)
        assert torch.equal(fed.target.cpu(), loaded.target)
        assert np.array_equal(fed.document, loaded.document)


def numbered(read: list[int], count: int) -> Iterator[Batch]:
    """Batches of zeros, noted when they are asked for."""
    for index in range(count):
        read.append(index)
        yield Batch(torch.zeros(1, 2), torch.zeros(1, 3), np.zeros(1, np.int32), np.zeros(1, np.int64), index, 0)


def test_only_one_batch_is_sent_in_advance() -> None:
    read: list[int] = []
    feed = iter(Feed(numbered(read, 3), torch.device("cpu")))
    assert (next(feed).index, read) == (0, [0, 1])
    assert (next(feed).index, read) == (1, [0, 1, 2])
    assert (next(feed).index, read) == (2, [0, 1, 2])
    assert list(feed) == []


def test_a_feed_of_no_batches_is_empty() -> None:
    assert list(Feed(iter(()), torch.device("cpu"))) == []


if torch.cuda.is_available():

    @pytest.mark.gpu
    def test_memory_is_not_used_again_before_the_step_that_reads_it(small_cache: Path) -> None:
        """Slow work on every batch, none of them kept: a buffer reused too early would have later rows."""
        reader = CacheReader.open(small_cache)
        with Loader(reader, batch_rows=48, seed=2, epochs=4) as plain:
            expected = [batch.source.float().sum(dim=0) for batch in plain]
        slow, sums = torch.randn(4096, 4096, device="cuda"), []
        with Loader(reader, batch_rows=48, seed=2, epochs=4, pin_memory=True) as loader:
            for batch in Feed(loader, torch.device("cuda")):
                for _ in range(5):
                    slow = torch.nn.functional.normalize(slow @ slow)
                sums.append(batch.source.float().sum(dim=0))
        for found, wanted in zip(sums, expected, strict=True):
            torch.testing.assert_close(found.cpu(), wanted)
