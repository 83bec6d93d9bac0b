"""A cache on this disk and its copy at a URL: late uploads, another cache, a new machine, repair."""

import shutil
from pathlib import Path

import fsspec
import pytest

from cache.config import CacheSettings
from cache.format.manifest import MANIFEST
from cache.open import open_cache
from cache.reader import CacheReader
from cache.storage.publish import publish_complete, withdraw
from cache.tools.repair import repair_cache
from cache.tools.verify_remote import repair_remote, verify_remote
from common.errors import MismatchError

BUCKET = "memory://bucket"
SETTINGS = CacheSettings(remote=BUCKET)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder of a cache; its copy in the bucket is at ``url(here)``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    fsspec.filesystem("memory").store.clear()
    yield tmp_path / "model" / "layer03" / "cache"
    fsspec.filesystem("memory").store.clear()


def url(here):
    return "/".join([BUCKET, *here.parts[-3:]])


def flip_remote(here, name, bit):
    system, path = fsspec.filesystem("memory"), f"{url(here).removeprefix('memory:/')}/{name}"
    data = bytearray(system.cat_file(path))
    data[bit // 8] ^= 1 << bit % 8
    system.pipe_file(path, bytes(data))


def test_a_cache_that_was_complete_before_is_published_whole(here, toy):
    toy.write(here)
    publish_complete(here, BUCKET, partition=0)
    assert verify_remote(url(here)).complete
    assert not verify_remote(url(here)).faults


def test_a_segment_that_was_harvested_again_is_uploaded_again(here, make_toy):
    make_toy(remote=BUCKET).write(here)
    shutil.rmtree(here)
    make_toy().write(here)
    system, journal = fsspec.filesystem("memory"), "/bucket/model/layer03/cache/journal/part-00000.jsonl"
    before = system.cat_file(journal)
    (here / "rows.zarr/train/source/c.1.0").unlink()
    repair_cache(here)
    make_toy().write(here)
    publish_complete(here, BUCKET, partition=0)
    assert system.cat_file(journal) == (here / "journal/part-00000.jsonl").read_bytes() != before
    assert not verify_remote(url(here)).faults


@pytest.mark.parametrize("partition", [0, 1])
def test_another_cache_at_the_url_is_not_overwritten(here, make_toy, partition):
    make_toy(remote=BUCKET).write(here)
    shutil.rmtree(here)
    other_toy = make_toy(remote=BUCKET, partitions=2, shuffle_seed=5)
    with pytest.raises(MismatchError, match="There is another cache at the remote URL") as caught:
        other_toy.writer(here, partition=partition)
    assert caught.value.where == url(here)
    assert not (here / MANIFEST).exists()
    assert not verify_remote(url(here)).faults
    withdraw(here, BUCKET)
    other_toy.write(here)
    assert verify_remote(url(here)).complete


def test_a_machine_that_has_only_manifest_and_journal_reads_from_the_url(here, make_toy, whole_cache):
    toy = make_toy(remote=BUCKET)
    toy.write(here)
    shutil.rmtree(here)
    assert toy.write(here) == 0
    assert (here / MANIFEST).exists()
    reader, local = open_cache(here, SETTINGS), CacheReader.open(whole_cache)
    all_rows = slice(None)
    assert (reader.split("train").rows(all_rows).source == local.split("train").rows(all_rows).source).all()


@pytest.mark.parametrize(
    ("name", "lost"),
    [("rows.zarr/train/source/c.1.0", 1), ("rows.zarr/parameters/gain/c.0", 0), ("rows.zarr/train/zarr.json", 0)],
)
def test_damage_at_the_url_is_revoked_and_uploaded_again(here, make_toy, name, lost):
    make_toy(remote=BUCKET).write(here)
    flip_remote(here, name, 3)
    done = repair_remote(url(here))
    assert [fault.path for fault in done.faults] == [name]
    assert len(done.revoked) == lost
    publish_complete(here, BUCKET, partition=0)
    assert verify_remote(url(here)).complete
    assert not verify_remote(url(here)).faults


def test_damage_at_the_url_of_rows_that_are_not_here_is_harvested_again(here, make_toy):
    toy = make_toy(remote=BUCKET)
    toy.write(here)
    shutil.rmtree(here)
    flip_remote(here, "rows.zarr/train/source/c.1.0", 3)
    repair_remote(url(here))
    assert toy.write(here) > 0
    assert verify_remote(url(here)).complete
    assert not verify_remote(url(here)).faults


def test_copies_of_earlier_processes_count_and_one_that_vanishes_is_no_error(here, make_toy, monkeypatch):
    make_toy(remote=BUCKET).write(here)
    limit = 600
    for _ in range(3):
        shutil.rmtree(here, ignore_errors=True)
        split = open_cache(here, CacheSettings(remote=BUCKET, remote_bytes=limit)).split("train")
        for row in range(0, len(split), 4):
            split.rows(slice(row, row + 1))
        copies = [file for file in (here.parents[2] / "home").rglob("chunks/**/*") if file.is_file()]
        assert sum(file.stat().st_size for file in copies if {"source", "target"} & {*file.parts}) <= limit
    stat = Path.lstat

    def gone(self):
        if "chunks" in self.parts:
            raise FileNotFoundError(self)
        return stat(self)

    monkeypatch.setattr(Path, "lstat", gone)
    assert open_cache(url(here)).fingerprint == split.reader.fingerprint
