"""A cache at a URL is verified file by file, and what is damaged is revoked for the next harvest."""

import fsspec
import pytest

from cache.tools.verify_remote import repair_remote, verify_remote
from common.errors import UsageError

SHARD = "rows.zarr/train/source/c.2.0"


@pytest.fixture
def url(bucket, tmp_path, monkeypatch):
    """The toy cache; copies of its chunks go to the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return bucket


def test_a_sound_one(url):
    found = verify_remote(url)
    assert found.faults == ()
    assert found.segments == (7, 7)
    repaired = repair_remote(url)
    assert (repaired.faults, repaired.rows) == ((), 0)


@pytest.mark.parametrize("kind", ["damaged", "truncated", "missing"])
def test_what_is_wrong_is_named_and_its_segment_revoked(url, kind):
    system = fsspec.filesystem("memory")
    data = system.cat_file(f"/bucket/toy/layer03/cache/{SHARD}")
    if kind == "missing":
        system.rm_file(f"/bucket/toy/layer03/cache/{SHARD}")
    else:
        system.pipe_file(f"/bucket/toy/layer03/cache/{SHARD}", data[:-1] if kind == "truncated" else bytes(len(data)))
    (fault,) = verify_remote(url).faults
    assert (fault.kind, fault.path, fault.segment) == (kind, SHARD, ("train", 1))
    repaired = repair_remote(url)
    assert repaired.rows == 16
    with pytest.raises(UsageError, match="6 of 7 segments"):
        verify_remote(url)
