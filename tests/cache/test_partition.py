"""One writer's part: locked by one process, compared with the files that are there, and removed completely."""

import subprocess

import pytest

from cache.partition import lock_partition, remove_cache
from common.errors import InUseError, MismatchError


def test_a_lock_leaves_no_folder_that_was_made_for_it(tmp_path):
    cache = tmp_path / "runs" / "cache"
    with lock_partition(cache, 3):
        assert (cache / "locks" / "part-00003").exists()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    with lock_partition(cache, 3):
        (cache / "row").write_text("kept")
    assert [path.name for path in cache.iterdir()] == ["row"]


def test_another_process_is_refused_and_the_holder_keeps_its_lock(warm_python, tmp_path):
    code = (
        "from pathlib import Path; from cache.partition import lock_partition\n"
        f"with lock_partition(Path({str(tmp_path)!r}), 0): pass"
    )
    with lock_partition(tmp_path, 0):
        done = subprocess.run([warm_python, "-c", code], capture_output=True, text=True, check=False)
        assert "InUseError" in done.stderr
        assert (tmp_path / "locks" / "part-00000").exists()
        with pytest.raises(InUseError), lock_partition(tmp_path, 0):
            pass


def test_a_writer_whose_caller_has_the_lock_takes_none(toy, tmp_path):
    with lock_partition(tmp_path, 0), toy.writer(tmp_path, locked=True) as writer:
        toy.feed(writer)
        assert writer.complete
    assert not (tmp_path / "locks").exists()


def test_a_cache_that_was_begun_by_another_number_of_processes_is_refused(make_toy, tmp_path):
    make_toy(partitions=2).writer(tmp_path).close()
    with pytest.raises(MismatchError, match="begun by 2 processes, not by 1"):
        make_toy().writer(tmp_path)


def test_removing_a_cache_leaves_other_files(cache, toy):
    (cache / "notes.txt").write_text("mine")
    (cache / "drafts").mkdir()
    remove_cache(cache)
    assert [path.name for path in cache.iterdir()] == ["notes.txt"]
    with lock_partition(cache, 0), pytest.raises(InUseError):
        toy.writer(cache)
