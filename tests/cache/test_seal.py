"""A complete cache whose journal lost lines is reported as one that was complete, and repaired from its seal."""

import shutil

import pytest

from cache.format.manifest import read_manifest
from cache.format.seal import journal_of, seal_path
from cache.reader import CacheReader
from cache.tools.repair import repair_cache
from cache.tools.verify import verify_cache
from common.errors import DamagedError

JOURNAL = "journal/part-00000.jsonl"


def empty(path):
    (path / JOURNAL).write_bytes(b"")


def remove(path):
    (path / JOURNAL).unlink()


def remove_folder(path):
    shutil.rmtree(path / "journal")


def cut_last_line(path):
    lines = (path / JOURNAL).read_bytes().splitlines(keepends=True)
    (path / JOURNAL).write_bytes(b"".join(lines[:-1]))


@pytest.mark.parametrize(("harm", "lost"), [(empty, 7), (remove, 7), (remove_folder, 7), (cut_last_line, 1)])
def test_a_journal_that_lost_lines_is_damage_and_comes_back(cache, whole_cache, tree, toy, harm, lost):
    harm(cache)
    stated = f"was complete, but its journal has lost {lost} of the 7 segments"
    with pytest.raises(DamagedError, match=stated):
        verify_cache(cache).require_sound()
    with pytest.raises(DamagedError, match=stated):
        CacheReader.open(cache)
    with pytest.raises(DamagedError, match=stated):
        toy.write(cache)
    assert repair_cache(cache).rows == 0
    shutil.rmtree(cache / "quarantine", ignore_errors=True)
    assert tree(cache) == tree(whole_cache)


def test_a_cache_without_a_seal_is_read_by_its_journal(cache):
    shutil.rmtree(cache / "seals")
    assert not verify_cache(cache).faults
    assert len(CacheReader.open(cache).split("train")) == 50
    cut_last_line(cache)
    assert not verify_cache(cache).complete


def test_a_rerun_seals_what_is_complete(cache, toy, whole_cache, tree):
    shutil.rmtree(cache / "seals")
    toy.write(cache)
    assert tree(cache) == tree(whole_cache)


@pytest.mark.parametrize("length", [0, 100, -1, -200])
def test_a_damaged_seal_is_named_and_written_again(cache, whole_cache, length):
    seal = cache / seal_path(0)
    seal.write_bytes(seal.read_bytes()[:length])
    assert [fault.path for fault in verify_cache(cache).faults] == [seal_path(0)]
    repair_cache(cache)
    assert seal.read_bytes() == (whole_cache / seal_path(0)).read_bytes()
    assert verify_cache(cache).complete


def test_what_was_revoked_and_written_again_is_sealed_again(cache, toy, flip):
    flip(cache / "rows.zarr/train/source/c.1.0", 99)
    repair_cache(cache)
    assert not verify_cache(cache).faults
    toy.write(cache)
    assert (cache / seal_path(0)).read_bytes() == (cache / JOURNAL).read_bytes()
    assert len(journal_of(cache, read_manifest(cache), 0).commits) == 7


def test_an_unfinished_cache_has_no_seal(tmp_path, toy):
    toy.write(tmp_path, stop=6)
    assert not (tmp_path / "seals").exists()
