"""The text read back from a shuffled cache is the text that was written, context by context."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cache.reader import CacheReader
from common.errors import UsageError
from finetune.contexts import TrainText
from tests.helpers.caches import write_cache

LENGTHS = (7, 7, 5, 7, 3, 7, 7, 6)
BOS = 0


def write(path: Path, *, special: list[int], position: np.ndarray | None = None) -> tuple[CacheReader, np.ndarray]:
    """Contexts of several lengths over several segments, each beginning with the special token."""
    starts = np.repeat(np.cumsum((0, *LENGTHS[:-1])), LENGTHS)
    places = (np.arange(len(starts)) - starts).astype(np.int32)
    tokens = np.where(places == 0, BOS, np.arange(1, len(starts) + 1)).astype(np.int32)
    source, target = torch.randn(2, len(tokens), 4)
    document = np.repeat(np.arange(len(LENGTHS), dtype=np.int64), LENGTHS)
    columns = {"tokens": tokens, "document": document, "position": places if position is None else position}
    rows = {"source": source, "target": target, **columns}
    write_cache(path, rows, special_ids=special, dtype="float32", chunk_rows=8, shard_rows=8, segment_rows=16)
    return CacheReader.open(path), tokens


def test_every_context_comes_once_an_epoch_padded_at_its_end(tmp_path: Path) -> None:
    reader, tokens = write(tmp_path / "cache", special=[BOS])
    text = TrainText.from_reader(reader)
    assert np.array_equal(text.tokens, tokens)
    assert text.context == 7
    expected = [tuple(piece) for piece in np.split(tokens, np.cumsum(LENGTHS)[:-1])]
    for epoch in range(2):
        seen = []
        for step in range(4 * epoch, 4 * epoch + 4):
            batch = text.batch(step, contexts=2, seed=1, device="cpu")
            assert batch.positions[0].tolist() == list(range(batch.tokens.shape[1]))
            for row in batch.tokens.tolist():
                kept = len(row) if BOS not in row[1:] else row.index(BOS, 1)
                assert set(row[kept:]) <= {BOS}
                seen.append(tuple(row[:kept]))
        assert sorted(seen) == sorted(expected)
    orders = [
        [text.batch(step, contexts=2, seed=seed, device="cpu").tokens[:, 1] for step in range(4)] for seed in (1, 2)
    ]
    assert any(not torch.equal(a, b) for a, b in zip(*orders, strict=True)), "another seed, another order"


def test_without_a_special_token_for_padding_only_full_contexts_are_used(tmp_path: Path) -> None:
    reader, _ = write(tmp_path / "cache", special=[])
    text = TrainText.from_reader(reader)
    assert len(text.starts) == LENGTHS.count(7)
    assert text.batch(0, contexts=3, seed=0, device="cpu").tokens.shape == (3, 7)


def test_rows_that_are_no_contexts_are_refused(tmp_path: Path) -> None:
    reader, _ = write(tmp_path / "cache", special=[BOS], position=np.zeros(sum(LENGTHS), np.int32))
    with pytest.raises(UsageError, match="has no context of two tokens"):
        TrainText.from_reader(reader)
