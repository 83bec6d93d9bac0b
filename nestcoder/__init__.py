"""nestcoder: harvest activations once, train nested-prefix transcoders from disk, judge them honestly."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transcoder.formats.native import load_transcoder as load_transcoder

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """``load_transcoder`` is imported when first asked for, so that ``import nestcoder`` stays instant."""
    if name == "load_transcoder":
        from transcoder.formats.native import load_transcoder

        return load_transcoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
