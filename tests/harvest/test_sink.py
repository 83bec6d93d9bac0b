"""Sinks: which caches one pass can fill, at which cursor it begins, and which batches go where."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch

from common.progress import Stopwatch
from harvest.batch import BatchRows
from harvest.config import HarvestSettings
from harvest.sink import Sink, cut_alike, slowest_cursor, writing
from harvest.text.tokens import ContextBatch
from tests.helpers.devices import a_mark


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


def test_rows_are_waited_for_and_then_taken_on_a_stream_of_their_own(monkeypatch):
    happened = []
    point = a_mark()

    @contextmanager
    def on_stream(device, name, *, after):
        happened.append(("enter", name, after))
        yield
        happened.append(("leave", name, after))

    monkeypatch.setattr("harvest.sink.reach", lambda point: happened.append(("reach", point)))
    monkeypatch.setattr("harvest.sink.on_stream", on_stream)
    taking = sink(1, None)
    taking.writer.append = lambda *_, **__: happened.append("append")
    settings = HarvestSettings(source="mlp_in", target="mlp_out")
    tensors = {(1, site): torch.zeros(2, 3) for site in settings.sites}
    rows = BatchRows(batch_at(None), tensors, {torch.device("cpu"): point})
    writing([taking], settings, Stopwatch())(rows)
    assert happened == [("reach", point), ("enter", "rows", point), "append", ("leave", "rows", point)]


def test_a_batch_goes_to_the_caches_that_take_it():
    appended = []

    def taking(layer):
        given = SimpleNamespace(cursor=cursor([4, 0]), complete=layer == 3)
        given.append = lambda *columns, held_out, cursor: appended.append((layer, columns, held_out, cursor))
        made = sink(layer, None)
        made.writer = given
        return made

    settings, watch = HarvestSettings(source="mlp_in", target="mlp_out"), Stopwatch()
    batch = batch_at(cursor([4, 0]))
    tensors = {(layer, site): torch.full((2, 3), float(layer)) for layer in (1, 3) for site in settings.sites}
    writing([taking(1), taking(3)], settings, watch)(BatchRows(batch, tensors, {torch.device("cpu"): None}))
    [(layer, (source, target, tokens, *_), held_out, begins)] = appended
    assert (layer, held_out, begins) == (1, False, cursor([4, 0]))
    assert source.tolist() == target.tolist() == [[1.0] * 3] * 2
    assert tokens.tolist() == [0, 0]
    assert watch.seconds.keys() == {"waiting_for_rows", "appending"}
    assert watch.first.keys() == {"rows"}
