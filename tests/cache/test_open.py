"""A cache opens from a folder or a URL, whole or as an autoencoder sees it."""

import pytest
import torch

from cache.config import CacheSettings
from cache.open import open_cache
from cache.reader import CacheReader
from cache.remote_reader import RemoteReader
from common.errors import MismatchError, UsageError


@pytest.fixture(autouse=True)
def own_copies(tmp_path, monkeypatch):
    """Copies of remote chunks go to the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


def test_a_folder(whole_cache):
    reader = open_cache(whole_cache, expect={"layer": 3})
    assert type(reader) is CacheReader
    assert len(reader.split("train")) == 50
    with pytest.raises(MismatchError, match="layer is 3, not 4"):
        open_cache(str(whole_cache), expect={"layer": 4})
    with pytest.raises(UsageError, match="no cache"):
        open_cache(whole_cache / "nothing")


def test_a_url(bucket, whole_cache):
    reader = open_cache(bucket)
    assert isinstance(reader, RemoteReader)
    local = open_cache(whole_cache)
    assert torch.equal(reader.split("train").rows(slice(None)).source, local.split("train").rows(slice(None)).source)


def test_the_remote_serves_what_is_not_complete_here(bucket, cache, tmp_path):
    settings = CacheSettings(remote="memory://bucket")
    here = tmp_path / "runs" / "toy" / "layer03" / "cache"
    assert isinstance(open_cache(here, settings), RemoteReader)
    here.parent.mkdir(parents=True)
    cache.rename(here)
    assert type(open_cache(here, settings)) is CacheReader


@pytest.mark.parametrize("column", ["source", "target"])
def test_an_autoencoder_reads_one_column_twice(whole_cache, column):
    reader = open_cache(whole_cache, column=column)
    rows, plain = (each.split("held_out").rows(slice(None)) for each in (reader, open_cache(whole_cache)))
    assert torch.equal(rows.source, getattr(plain, column))
    assert torch.equal(rows.target, getattr(plain, column))
    assert reader.d_source == reader.d_target
