"""The silent progress has all methods of a progress; seconds are added up by part, also of a block that raises."""

import pytest

from common import progress as module
from common.progress import Progress, Silent, Stopwatch


def test_silent_is_a_progress() -> None:
    silent = Silent()
    assert isinstance(silent, Progress)
    silent.begin("train", total=3, unit="steps", done=1)
    silent.advance(1, loss=0.5)
    silent.note("a note")
    silent.end()
    silent.end()


def test_seconds_are_added_up_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([-1.0, 0.0, 2.0, 10.0, 10.5, 20.0, 23.0, 30.0])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    with watch.timing("model"):
        pass
    with watch.timing("disk"):
        pass
    with pytest.raises(ZeroDivisionError), watch.timing("model"):
        raise ZeroDivisionError
    assert watch.seconds == {"model": 5.0, "disk": 0.5}
    watch.note_first("rows")
    watch.note_first("rows")
    assert watch.first == {"rows": 31.0}
