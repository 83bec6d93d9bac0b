"""What each command does: names the folders, calls the stage, and words the result for people.

Every function returns (result for ``--json``, text for people).
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from cache.errors import UsageError
from nestcoder.progress import make_progress
from nestcoder.ranks import process_group, read_ranks
from nestcoder.runs import known_layers

if TYPE_CHECKING:
    from nestcoder.cli import Invocation

Said = tuple[Any, str]


def harvest(invocation: "Invocation", layers: list[int], device: str, *, fresh: bool) -> Said:
    """Harvest ``layers`` in one pass, or go on where an earlier harvest stopped."""
    from harvest.run import harvest_layers

    settings, ranks = invocation.settings, read_ranks()
    with _progress() as progress:
        result = harvest_layers(
            model=settings.model,
            layers=layers,
            settings=settings.harvest,
            cache_settings=settings.cache,
            folders={layer: invocation.folders(layer).cache for layer in layers},
            device=ranks.device(device),
            fresh=fresh,
            progress=progress,
            rank=ranks.rank,
            world=ranks.world,
        )
    return result, "\n".join(str(invocation.folders(layer).cache) for layer in layers)


@contextmanager
def _progress() -> Iterator[Any]:
    """Progress on standard error; SIGTERM leaves as Ctrl-C does, with code 143."""
    progress = make_progress()

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield progress
    finally:
        progress.end()
        signal.signal(signal.SIGTERM, before)
