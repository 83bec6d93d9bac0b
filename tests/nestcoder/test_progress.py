"""What is shown while a stage runs: a bar on a terminal, complete lines elsewhere."""

import io

from nestcoder.progress import LineProgress, TerminalProgress


def test_lines_have_no_carriage_return_and_end_with_the_total() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream, every_seconds=0.0)
    progress.begin("train", total=30, unit="steps", done=10)
    progress.advance(5, loss=0.5)
    progress.advance(15, loss=0.25, fvu=0.125)
    progress.end()
    text = stream.getvalue()
    assert "\r" not in text
    assert "\x1b" not in text
    first, *_, last = text.splitlines()
    assert first == "train: 10 of 30 steps"
    assert last.startswith("train: 30 of 30 steps")
    assert "loss 0.25" in last
    assert "fvu 0.125" in last


def test_lines_are_rare() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream)
    progress.begin("harvest", total=1000, unit="tokens")
    for _ in range(1000):
        progress.advance(1)
    progress.end()
    progress.end()
    assert len(stream.getvalue().splitlines()) == 2


def test_a_terminal_gets_a_bar_with_rate_and_metrics() -> None:
    stream = io.StringIO()
    progress = TerminalProgress(stream)
    progress.begin("train", total=4, unit="steps")
    progress.advance(4, fvu=0.2)
    progress.note("a [note] as it is")
    progress.end()
    progress.end()
    text = stream.getvalue()
    assert "train" in text
    assert "100 %" in text
    assert "fvu 0.2" in text
    assert "a [note] as it is" in text


def test_bytes_have_units() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream, every_seconds=0.0)
    progress.begin("verify", total=2_500_000_000, unit="bytes")
    progress.advance(2_500_000_000)
    progress.end()
    first, *_, last = stream.getvalue().splitlines()
    assert first == "verify: 0 B of 2.5 GB"
    assert last.startswith("verify: 2.5 GB of 2.5 GB, 0:00, ")
    assert last.endswith("B/s")


def test_lines_of_a_log_stay_short_without_control_characters() -> None:
    stream = io.StringIO()
    progress = LineProgress(stream, every_seconds=0.0)
    progress.begin("train", total=10**9, unit="steps")
    progress.advance(5, **{f"fvu_of_prefix_{number}": 0.123 for number in range(30)})
    progress.note("column '\x1b[2J\r' " + "word " * 60)
    progress.end()
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) < 120
    assert "fvu_of_prefix_0 0.123" in lines[1]
    assert "column '\\x1b[2J\\r'" in stream.getvalue()


def test_a_path_is_not_shortened() -> None:
    path = "/a-folder" * 20
    in_log, on_terminal = io.StringIO(), io.StringIO()
    for progress in (LineProgress(in_log), TerminalProgress(on_terminal)):
        progress.note(f"loading {path} onto cpu")
    assert in_log.getvalue().split("\n") == ["loading", path, "onto cpu", ""]
    assert on_terminal.getvalue() == f"loading {path} onto cpu\n"
