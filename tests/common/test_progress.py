"""The silent progress does what every other must: it has all methods, and takes what stages tell it."""

from common.progress import Progress, Silent


def test_the_silent_one_is_a_progress() -> None:
    silent = Silent()
    assert isinstance(silent, Progress)
    silent.begin("train", total=3, unit="steps", done=1)
    silent.advance(1, loss=0.5)
    silent.note("a note")
    silent.end()
    silent.end()
