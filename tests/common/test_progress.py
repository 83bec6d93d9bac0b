"""The silent progress has all methods of a progress."""

from common.progress import Progress, Silent


def test_silent_is_a_progress() -> None:
    silent = Silent()
    assert isinstance(silent, Progress)
    silent.begin("train", total=3, unit="steps", done=1)
    silent.advance(1, loss=0.5)
    silent.note("a note")
    silent.end()
    silent.end()
