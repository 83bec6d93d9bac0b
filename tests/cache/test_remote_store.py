"""Files below a URL: read whole and in part, tried again when a connection breaks, refused in one sentence."""

import fsspec
import pytest

from cache.storage.remote_store import RemoteStore, url_of
from common.errors import DamagedError, DiskError, UsageError


@pytest.fixture
def store():
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield RemoteStore("memory://bucket/cache/")
    system.store.clear()


def test_what_is_written_is_read_in_whole_and_in_part(store):
    store.write("folder/file", b"0123456789")
    assert store.has("folder/file")
    assert store.read("folder/file") == b"0123456789"
    assert store.read("folder/file", 2, 5) == b"234"
    store.write("folder/file", b"shorter")
    assert store.read("folder/file") == b"shorter"
    store.remove("folder/file")
    store.remove("folder/file")
    assert not store.has("folder/file")
    with pytest.raises(DamagedError, match="missing"):
        store.read("folder/file")


def test_the_whole_folder_is_removed(store):
    for name in ("a", "b/c"):
        store.write(name, b"data")
    store.remove()
    assert not store.has("a")
    assert not store.has("b/c")


@pytest.mark.parametrize(("failures", "succeeds"), [(1, True), (3, True), (4, False)])
def test_a_connection_may_break_three_times(store, monkeypatch, failures, succeeds):
    store.write("file", b"data")
    cat_file = store._system.cat_file
    broken = iter(range(failures))

    def breaking(*arguments, **options):
        if next(broken, None) is not None:
            raise ConnectionError("reset by peer")
        return cat_file(*arguments, **options)

    monkeypatch.setattr(store._system, "cat_file", breaking)
    if succeeds:
        assert store.read("file") == b"data"
    else:
        with pytest.raises(DiskError, match="ConnectionError: reset by peer"):
            store.read("file")


def test_a_short_answer_is_refused(store, monkeypatch):
    store.write("file", b"data")
    monkeypatch.setattr(store._system, "cat_file", lambda *_, **__: b"da")
    with pytest.raises(DiskError, match="2 of 4 bytes arrived"):
        store.read("file", 0, 4)


def test_an_unknown_kind_of_url_is_refused():
    with pytest.raises(UsageError, match="cannot be opened"):
        RemoteStore("nosuch://bucket")


def test_a_cache_has_the_same_path_below_the_url_as_below_runs(tmp_path):
    assert url_of(tmp_path / "gpt2" / "layer08" / "cache", "s3://bucket/runs/") == "s3://bucket/runs/gpt2/layer08/cache"
