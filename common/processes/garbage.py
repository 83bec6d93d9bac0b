"""Python's search for garbage, which takes longer the more objects there are: libraries bring more than a million."""

import atexit
import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def no_collections() -> Generator[None]:
    """No search for garbage in the block, which imports libraries: nearly all that they make lives to the end."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def leave_garbage() -> None:
    """No search for garbage when the process ends: the system takes its memory back in any case."""
    atexit.register(gc.freeze)
