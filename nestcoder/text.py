"""Text for people: tables, lists of facts, and text from files without control characters."""

import re
from collections.abc import Sequence
from typing import Any

from common.units import duration, in_bytes

# Control characters except newline and tab, and marks that change the direction of writing: a terminal obeys them.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` with control characters as escapes (``\\x1b``): names from files must not control a terminal."""
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of left-aligned columns with two spaces between them."""
    widths = [max(len(row[column]) for row in (heading, *rows)) for column in range(len(heading))]
    cells = ([text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in (heading, *rows))
    return ["  ".join(line).rstrip() for line in cells]


def as_lines(facts: dict[str, Any]) -> str:
    """One fact in each line: counts with separators, fractions in three digits, bytes in MB or GB, seconds as
    minutes."""
    width = max(len(name) for name in facts)
    return "\n".join(f"{name.replace('_', ' '):<{width}}  {_worded(name, value)}" for name, value in facts.items())


def _worded(name: str, value: Any) -> str:
    if name.startswith("bytes_") or name.endswith("_bytes"):
        return in_bytes(value)
    if name.endswith("seconds"):
        return duration(value)
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    if isinstance(value, float) and abs(value) < 100:
        return f"{value:.3g}"  # a learning rate, a number of epochs
    return f"{value:,.0f}" if isinstance(value, int | float) else str(value)
