import os
import shutil
import signal

import pytest

from cache.tools.repair import repair_cache
from cache.tools.verify import verify_cache
from common import disk
from common.errors import DamagedError, InUseError, MismatchError

SHARD = "rows.zarr/train/source/c.1.0"
JOURNAL = "journal/part-00000.jsonl"


def rows_of(tree, path):
    return {name: data for name, data in tree(path).items() if name.startswith(("rows.zarr", "manifest"))}


def test_a_sound_cache_is_not_changed(cache, tree):
    before = tree(cache)
    done = repair_cache(cache)
    assert not done.faults
    assert tree(cache) == before


def test_a_damaged_shard_is_set_aside_and_only_its_segment_harvested_again(cache, toy, tree, flip, whole_cache):
    flip(cache / SHARD, 99)
    kept = {path: (cache / path).stat().st_ino for path in tree(cache) if "/c.2" in path or "held_out" in path}
    done = repair_cache(cache)
    assert done.quarantined == (SHARD,)
    assert done.revoked == (("train", 0),)
    assert done.rows == 16
    assert (cache / "quarantine" / SHARD).exists()
    found = verify_cache(cache)
    assert not found.faults
    assert found.segments == (6, 7)
    contexts = toy.write(cache)
    assert contexts == 5, "16 training rows lie in the first five contexts"
    assert rows_of(tree, cache) == rows_of(tree, whole_cache)
    assert kept == {path: (cache / path).stat().st_ino for path in kept}
    assert verify_cache(cache).complete


@pytest.mark.parametrize("group", ["train", "held_out"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_any_shard_can_be_lost(cache, toy, tree, whole_cache, group, number):
    (cache / f"rows.zarr/{group}/target/c.{number}.0").unlink()
    done = repair_cache(cache)
    assert len(done.revoked) == 1
    assert toy.write(cache) < 12
    assert rows_of(tree, cache) == rows_of(tree, whole_cache)


def test_several_faults_at_once(cache, toy, tree, flip, whole_cache):
    flip(cache / SHARD, 99)
    flip(cache / "rows.zarr/train/tokens/c.2", 5)
    (cache / "rows.zarr/held_out/statistics/c.1.0").unlink()
    (cache / "rows.zarr/train/source/zarr.json").write_bytes(b"{}")
    (cache / "rows.zarr/train/surplus").write_bytes(b"?")
    flip(cache / "rows.zarr/parameters/gain/c.0", 3)
    done = repair_cache(cache)
    assert set(done.revoked) == {("train", 0), ("train", 2), ("held_out", 1)}
    assert done.rewritten == ("rows.zarr/train/source/zarr.json",)
    toy.write(cache)
    assert rows_of(tree, cache) == rows_of(tree, whole_cache)
    assert not verify_cache(cache).faults


def test_a_kill_at_any_operation_of_a_repair_leaves_it_to_the_next_one(cache, tmp_path, toy, tree, flip, whole_cache):
    flip(cache / SHARD, 99)
    flip(cache / JOURNAL, 8 * 1500)
    (cache / "rows.zarr/train/source/zarr.json").write_bytes(b"{}")
    operations = []
    shutil.copytree(cache, tmp_path / "alone")
    with disk.watch(lambda when, operation, path: operations.append(operation) if when == "before" else None):
        repair_cache(tmp_path / "alone")
    for number in range(1, len(operations) + 1):
        path = tmp_path / str(number)
        shutil.copytree(cache, path)
        assert killed_in_repair(path, number)
        repair_cache(path)
        assert tree(path) == tree(tmp_path / "alone"), f"killed before operation {number}, {operations[number - 1]}"
        assert not verify_cache(path).faults
    toy.write(path)
    assert rows_of(tree, path) == rows_of(tree, whole_cache)


def killed_in_repair(path, number):
    """Repair in a fork that is killed before the operation of this number; whether it was killed."""
    count = 0

    def kill(when, _operation, _path):
        nonlocal count
        count += when == "before"
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            with disk.watch(kill):
                repair_cache(path)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_swapped_shards_are_both_redone(cache, toy, tree, whole_cache):
    second = cache / SHARD.replace("c.1", "c.2")
    (cache / SHARD).rename(cache / "aside")
    second.rename(cache / SHARD)
    (cache / "aside").rename(second)
    assert set(repair_cache(cache).revoked) == {("train", 0), ("train", 1)}
    toy.write(cache)
    assert rows_of(tree, cache) == rows_of(tree, whole_cache)


@pytest.mark.parametrize("line", [0, 1, 4, 7])
def test_a_damaged_journal_line_is_taken_from_the_seal(cache, flip, whole_cache, line):
    data = (cache / JOURNAL).read_bytes()
    starts = [0, *(offset + 1 for offset, byte in enumerate(data) if byte == 10)]
    flip(cache / JOURNAL, 8 * (starts[line] + 40))
    assert [fault.kind for fault in repair_cache(cache).faults] == ["unreadable"]
    assert (cache / JOURNAL).read_bytes() == (whole_cache / JOURNAL).read_bytes()
    assert verify_cache(cache).complete


@pytest.mark.parametrize("line", [0, 1, 4, 7])
def test_without_a_seal_a_damaged_journal_line_costs_only_its_segment(cache, toy, tree, flip, whole_cache, line):
    shutil.rmtree(cache / "seals")
    data = (cache / JOURNAL).read_bytes()
    starts = [0, *(offset + 1 for offset, byte in enumerate(data) if byte == 10)]
    flip(cache / JOURNAL, 8 * (starts[line] + 40))
    with pytest.raises(DamagedError, match=f"Line {line + 1} of the journal"):
        toy.write(cache)
    done = repair_cache(cache)
    assert done.faults[0].kind == "unreadable"
    assert verify_cache(cache).segments == (7 if line == 0 else 6, 7)
    toy.write(cache)
    assert rows_of(tree, cache) == rows_of(tree, whole_cache)
    assert verify_cache(cache).complete


def test_the_last_newline_of_a_journal_is_not_mistaken_for_a_crash(cache, flip):
    flip(cache / JOURNAL, 8 * ((cache / JOURNAL).stat().st_size - 1))
    assert [fault.kind for fault in verify_cache(cache).faults] == ["unreadable"]
    repair_cache(cache)
    assert verify_cache(cache).complete


def test_the_journal_of_another_cache_is_not_used(cache, toy, make_toy, tmp_path, tree, whole_cache):
    shutil.rmtree(cache / "seals")
    make_toy(shuffle_seed=1).write(tmp_path / "other")
    shutil.copy(tmp_path / "other" / JOURNAL, cache / JOURNAL)
    repair_cache(cache)
    assert verify_cache(cache).segments == (0, 7)
    toy.write(cache)
    assert rows_of(tree, cache) == rows_of(tree, whole_cache)


def test_a_damaged_manifest_comes_back_with_the_harvest(cache, toy, make_toy, tree, flip, whole_cache):
    flip(cache / "manifest.json", 1000)
    done = repair_cache(cache)
    assert done.quarantined == ("manifest.json",)
    with pytest.raises(MismatchError, match="The journal belongs to cache"):
        make_toy(shuffle_seed=1).write(cache)
    assert toy.write(cache) == 0
    assert rows_of(tree, cache) == rows_of(tree, whole_cache)


def test_a_linked_folder_is_not_trusted(cache, toy, tree, tmp_path, whole_cache):
    (cache / "rows.zarr/train/source").rename(tmp_path / "away")
    (cache / "rows.zarr/train/source").symlink_to(tmp_path / "away")
    done = repair_cache(cache)
    assert {segment for group, segment in done.revoked if group == "train"} == {0, 1, 2, 3}
    toy.write(cache)
    assert rows_of(tree, cache) == rows_of(tree, whole_cache)
    assert (cache / "quarantine/rows.zarr/train/source").is_symlink()


def test_a_cache_that_is_being_written_is_not_repaired(tmp_path, toy):
    with toy.writer(tmp_path), pytest.raises(InUseError):
        repair_cache(tmp_path)


def test_an_incomplete_journal_line_does_not_hide_the_revocation(tmp_path, toy, flip, tree, whole_cache):
    toy.write(tmp_path, stop=9)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b"0123456789abcdef {")
    flip(tmp_path / SHARD, 99)
    assert repair_cache(tmp_path).revoked == (("train", 0),)
    toy.write(tmp_path)
    assert rows_of(tree, tmp_path) == rows_of(tree, whole_cache)
