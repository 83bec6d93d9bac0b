"""Text for people: aligned columns, facts with their names, and no control characters."""

from nestcoder.text import as_lines, printable, table


def test_control_characters_are_shown_and_not_obeyed() -> None:
    assert printable("a\x1b[2J\rb\x00\x9b\u202ec") == "a\\x1b[2J\\rb\\x00\\x9b\\u202ec"
    assert printable("lone \ud800 surrogate") == "lone \\ud800 surrogate"
    assert printable("tab\tand\nline, é, 日本") == "tab\tand\nline, é, 日本"


def test_columns_line_up() -> None:
    assert table(("a", "long heading"), [("first", "x"), ("b", "y")]) == ["a      long heading", "first  x", "b      y"]


def test_facts_are_shown_by_their_names() -> None:
    facts = {"rows": 12345, "bytes_needed": 2_500_000, "seconds": 61, "layers": [4, 8], "none": [], "dtype": "bfloat16"}
    facts |= {"lr": 0.00041, "speed": 1234.5}
    lines = [line.split(maxsplit=1)[-1] for line in as_lines(facts).splitlines()]
    assert [line.removeprefix("needed").strip() for line in lines] == [
        "12,345", "2.5 MB", "1:01", "4, 8", "none", "bfloat16", "0.00041", "1,234",
    ]  # fmt: skip
