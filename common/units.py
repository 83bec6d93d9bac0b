"""Numbers for people: bytes in units of 1000 (never of 1024), durations, rates."""


def in_bytes(count: int | float) -> str:
    """A number of bytes, in three digits and a unit of 1000: ``2.5 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        # With three digits 999.5 would become 1e+03.
        if count < 999.5 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g} {unit}"


def duration(seconds: int | float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def short_number(value: int | float) -> str:
    """A number in at most eight characters."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def rate(value: int | float, unit: str) -> str:
    """``12 steps/s``, without an exponent; the unit ``bytes`` gives ``1.2 MB/s``."""
    if unit == "bytes":
        return f"{in_bytes(value)}/s"
    return f"{value:,.0f} {unit}/s" if value >= 10 else f"{value:.2f} {unit}/s"


def amount_done(done: int, total: int, unit: str) -> str:
    """``3 of 1,000 steps``; the unit ``bytes`` gives ``1 MB of 2.5 GB``."""
    return f"{in_bytes(done)} of {in_bytes(total)}" if unit == "bytes" else f"{done:,} of {total:,} {unit}"
