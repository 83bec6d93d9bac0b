"""Sinks: which caches one pass can fill, and at which cursor it begins."""

from types import SimpleNamespace

import numpy as np

from harvest.sink import Sink, cut_alike, slowest_cursor
from harvest.text.tokens import ContextBatch


def sink(layer, cursor):
    """A sink of a writer that stopped at a cursor; made without its constructor, which needs a real writer."""
    made = object.__new__(Sink)
    vars(made).update(layer=layer, writer=SimpleNamespace(cursor=cursor, complete=False), waiting=True)
    return made


def batch_at(cursor):
    tokens = np.zeros((1, 2), dtype=np.int64)
    return ContextBatch(
        tokens=tokens, documents=tokens, kept=tokens == 0, document_positions=tokens, held_out=False, cursor=cursor
    )


def cursor(emitted, batch_contexts=4):
    return {"emitted": emitted, "emitted_rows": 32 * sum(emitted), "batch_contexts": batch_contexts}


def test_caches_whose_batches_were_cut_differently_need_separate_passes():
    sinks = [sink(1, cursor([4, 0])), sink(2, cursor([8, 0], 2)), sink(3, cursor([8, 0])), sink(4, None)]
    assert [[member.layer for member in group] for group in cut_alike(sinks)] == [[1, 3, 4], [2]]
    assert [[member.layer for member in group] for group in cut_alike([sink(1, None), sink(2, None)])] == [[1, 2]]


def test_a_pass_begins_where_the_slowest_stopped():
    sinks = [sink(1, cursor([8, 4])), sink(2, cursor([4, 4]))]
    assert slowest_cursor(sinks) == cursor([4, 4])
    assert slowest_cursor([*sinks, sink(3, None)]) is None


def test_a_cache_takes_no_row_before_its_cursor():
    waiting = sink(1, cursor([4, 0]))
    batches = [batch_at(begin) for begin in (None, cursor([4, 0]), cursor([4, 4]))]
    assert [waiting.takes(batch) for batch in batches] == [False, True, True]
