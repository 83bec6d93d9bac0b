"""Contexts that are rebuilt from the tokens of a cache are those that were harvested."""

from pathlib import Path

import pytest
import torch

from cache.reader import CacheReader
from evaluate.spliced.contexts import held_out_contexts

CONTEXT = 24
"""Tokens of every context of the small cache."""


@pytest.mark.parametrize(("batch_tokens", "shapes"), [(1, [1] * 6), (4 * CONTEXT, [4, 2]), (10_000, [6])])
def test_contexts_come_back_as_they_were_harvested(small_cache: Path, batch_tokens: int, shapes: list[int]) -> None:
    reader = CacheReader.open(small_cache)
    contexts = held_out_contexts(reader, tokens=10_000, batch_tokens=batch_tokens, device="cpu")
    assert [tuple(batch.tokens.shape) for batch in contexts] == [(count, CONTEXT) for count in shapes]
    assert (
        torch.cat([batch.tokens for batch in contexts]).flatten().tolist() == reader.split("held_out").tokens.tolist()
    )
    assert contexts[0].positions[0].tolist() == list(range(CONTEXT))
    first = held_out_contexts(reader, tokens=CONTEXT + 1, batch_tokens=1, device="cpu")
    assert len(first) == 2


def test_positions_restart_where_attention_does(small_cache: Path) -> None:
    reader = CacheReader.open(small_cache)
    reader.identity["attention"] = "document"
    contexts = held_out_contexts(reader, tokens=CONTEXT, batch_tokens=1, device="cpu")
    assert contexts[0].positions[0].tolist() == [*range(12), *range(12)]
