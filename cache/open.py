"""``open_cache`` opens a cache in a folder or at a URL."""

from pathlib import Path
from typing import Any

from cache.autoencoder import as_autoencoder
from cache.config import CacheSettings
from cache.format.layout import ActivationName
from cache.reader import CacheReader, View, is_complete
from cache.remote_reader import open_remote
from cache.storage.remote_store import url_of


def open_cache(
    path: Path | str,
    settings: CacheSettings | None = None,
    *,
    expect: dict[str, Any] | None = None,
    view: View = "mlp_in",
    column: ActivationName | None = None,
    device: str = "cpu",
) -> CacheReader:
    """Open a finished cache to read its rows.

        reader = open_cache("runs/gpt2/layer08/cache")
        train = reader.split("train")
        rows = train.rows(slice(0, 512))          # source (512, d_source), target (512, d_target), tokens, ...
        ordinary = train.is_ordinary(rows.tokens)   # False for special tokens, which no metric counts
        print(len(train), reader.identity["model"], reader.statistics.target.variance_sum)

    ``path`` is a folder, or a URL that fsspec knows (``s3://bucket/gpt2/layer08/cache``). With ``settings.remote``, a
    cache that is not complete in its folder is read from the same path below that URL. ``expect`` has the fields that
    the cache's identity must have, with their values. ``view`` is how the source is seen (see ``cache.reader``);
    ``column`` opens the cache as an autoencoder of its source or target sees it. A target that is not stored is
    computed on ``device``.

    Raises UsageError when there is no cache or it is not finished, DamagedError, MismatchError that names the field,
    and for a URL DiskError.
    """
    reader = _opened(path, settings or CacheSettings(), expect=expect, view=view, device=device)
    return as_autoencoder(reader, column) if column else reader


def _opened(
    path: Path | str, settings: CacheSettings, *, expect: dict[str, Any] | None, view: View, device: str
) -> CacheReader:
    if isinstance(path, str) and "://" in path:
        return open_remote(path, expect=expect, view=view, limit_bytes=settings.remote_bytes, device=device)
    folder = Path(path)
    if settings.remote and not is_complete(folder):
        return open_remote(
            url_of(folder, settings.remote), expect=expect, view=view, limit_bytes=settings.remote_bytes, device=device
        )
    return CacheReader.open(folder, expect=expect, verify=settings.check_reads, view=view, device=device)
