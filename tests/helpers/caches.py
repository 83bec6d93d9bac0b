"""Small caches of rows that a test makes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache.config import CacheSettings
from cache.writer import CacheWriter

Rows = Mapping[str, Any]
"""Arrays by name, as ``CacheWriter.append`` takes them: source, target, tokens, document, position."""


def write_cache(
    path: Path,
    train: Rows,
    held_out: Rows | None = None,
    *,
    identity: dict[str, Any] | None = None,
    special_ids: Sequence[int] = (0,),
    arrays: dict[str, np.ndarray] | None = None,
    **settings: Any,
) -> Path:
    """A complete cache of these training and held-out rows, at ``path``."""
    with CacheWriter(
        path,
        identity=identity or {},
        settings=CacheSettings(**settings),
        d_source=train["source"].shape[1],
        d_target=train["target"].shape[1],
        train_rows=len(train["tokens"]),
        held_out_rows=len(held_out["tokens"]) if held_out else 0,
        special_ids=list(special_ids),
        arrays=arrays or {},
    ) as writer:
        writer.append(**train, held_out=False, cursor=0)
        if held_out:
            writer.append(**held_out, held_out=True, cursor=1)
        assert writer.complete
    return path
