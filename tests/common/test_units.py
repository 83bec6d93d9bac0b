"""Numbers as people read them."""

import pytest

from common.units import amount_done, duration, in_bytes, rate, short_number


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (999.6, "1 kB"), (2_500_000, "2.5 MB"), (1.5e9, "1.5 GB"), (3e16, "3e+04 TB")],
)
def test_bytes_come_in_units_of_1000(count: float, text: str) -> None:
    assert in_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.9, "1:01"), (3661, "1:01:01")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0.12345, "0.123"), (12345.6, "12,346"), (0.0003, "0.0003")])
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.5, "steps", "0.50 steps/s"), (12345.6, "tokens", "12,346 tokens/s"), (2.5e6, "bytes", "2.5 MB/s")],
)
def test_rates(value: float, unit: str, text: str) -> None:
    assert rate(value, unit) == text


def test_how_much_is_done() -> None:
    assert amount_done(3, 1000, "steps") == "3 of 1,000 steps"
    assert amount_done(0, 2_500_000_000, "bytes") == "0 B of 2.5 GB"
