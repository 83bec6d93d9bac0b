"""The parts of a pass add up to what its threads did."""

from types import SimpleNamespace

from common.progress import Stopwatch
from harvest import timing as module
from harvest.sink import Sink
from harvest.threads import BackgroundWriter, Prefetcher
from harvest.timing import PassTimes


def test_the_parts_of_a_pass_are_told_apart(monkeypatch):
    monkeypatch.setattr(module.time, "perf_counter", lambda: 100.0)
    times = PassTimes()
    times.own.seconds = {"all": 10.0, "batches": 7.0, "launching": 5.0}
    times.writing.seconds = {"waiting_for_rows": 2.0, "appending": 6.0}
    sinks = [object.__new__(Sink) for _ in range(2)]  # its constructor needs a real writer
    for sink in sinks:
        sink.writer = SimpleNamespace(watch=Stopwatch(), first_commit=(64, 104.0))
        sink.writer.watch.seconds["committing"] = 2.5
    facts = times.facts(Prefetcher([], depth=1), BackgroundWriter(print, depth=1), sinks)
    assert facts["seconds"] == 10.0
    assert (facts["launching_seconds"], facts["proving_seconds"], facts["ending_seconds"]) == (5.0, 0.0, 3.0)
    assert (facts["waited_for_rows_seconds"], facts["dealing_seconds"], facts["committing_seconds"]) == (2.0, 1.0, 5.0)
    assert (facts["first_segment_rows"], facts["first_segment_seconds"]) == (64, 4.0)
