"""Copies of chunks on this disk: made once, within a limit, the least recently used going first."""

import os

import pytest

from cache.format.manifest import read_manifest
from cache.reader import CacheReader
from cache.storage.chunk_copies import ChunkCopies
from cache.storage.remote_store import RemoteStore
from common.errors import DiskError


@pytest.fixture
def served(bucket, whole_cache):
    """A store with the toy cache, its array of sources, and the entries of its files."""
    array = read_manifest(whole_cache).geometry.groups["train"].arrays["source"]
    entries = CacheReader.open(whole_cache).split("train").columns["source"]._entries
    return RemoteStore(bucket), array, entries


def fetch(copies, array, entries, chunk):
    return copies.fetch(array, chunk, entries[chunk // array.index_entries])


def test_a_chunk_is_copied_once_and_is_what_the_file_holds(served, whole_cache, tmp_path):
    store, array, entries = served
    copies = ChunkCopies(store, tmp_path, limit_bytes=1 << 20)
    for _ in range(2):
        path = fetch(copies, array, entries, 3)
    assert path == tmp_path / "chunks" / "rows.zarr/train/source/3"
    shard = (whole_cache / array.file_path(1)).read_bytes()
    assert path.read_bytes() == shard[array.chunk_bytes : 2 * array.chunk_bytes]
    assert copies.fetched == 1


def test_a_cut_copy_is_fetched_again(served, tmp_path):
    store, array, entries = served
    copies = ChunkCopies(store, tmp_path, limit_bytes=1 << 20)
    path = fetch(copies, array, entries, 0)
    path.write_bytes(b"cut")
    assert fetch(copies, array, entries, 0).stat().st_size == array.chunk_bytes
    copies.remove((array.path, 0))
    assert not path.exists()


def test_what_earlier_processes_left_counts_and_the_oldest_goes(served, tmp_path):
    store, array, entries = served
    copies = ChunkCopies(store, tmp_path, limit_bytes=1 << 20)
    for age, chunk in enumerate((2, 0, 1)):
        os.utime(fetch(copies, array, entries, chunk), (age, age))
    ChunkCopies(store, tmp_path, limit_bytes=2 * array.chunk_bytes)
    assert sorted(path.name for path in (tmp_path / "chunks").rglob("*") if path.is_file()) == ["0", "1"]


def test_a_disk_that_takes_no_copy_is_named(served, tmp_path):
    store, array, entries = served
    (tmp_path / "chunks").write_text("a file where the folder should be")
    copies = ChunkCopies(store, tmp_path, limit_bytes=1 << 20)
    with pytest.raises(DiskError, match="A chunk cannot be copied here"):
        fetch(copies, array, entries, 0)
