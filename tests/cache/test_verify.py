import os
import shutil

import pytest

from cache.tools.verify import verify_cache
from common.errors import DamagedError

SHARD = "rows.zarr/train/source/c.1.0"


def kinds(cache, **options):
    return {fault.path: fault.kind for fault in verify_cache(cache, **options).faults}


def test_a_complete_cache_has_no_fault(cache):
    found = verify_cache(cache)
    assert not found.faults
    assert not found.leftovers
    assert found.complete
    assert found.segments == (7, 7)
    assert found.bytes == sum(file.stat().st_size for file in (cache / "rows.zarr").rglob("*") if file.is_file())
    found.require_sound()


def test_a_flipped_bit_names_shard_chunk_and_rows(cache, flip):
    flip(cache / SHARD, 8 * 200)
    found = verify_cache(cache)
    assert [str(fault) for fault in found.faults] == [f"{SHARD}: damaged, chunk 1 (rows 12 to 15)"]
    assert found.faults[0].chunks == (1,)
    assert found.damaged_segments == (("train", 0),)
    with pytest.raises(DamagedError, match=r"(?s)1 fault.*c\.1\.0: damaged, chunk 1"):
        found.require_sound()


def test_a_flipped_bit_of_the_index_is_named(cache, flip):
    flip(cache / SHARD, 8 * (cache / SHARD).stat().st_size - 3)
    assert [str(fault) for fault in verify_cache(cache).faults] == [f"{SHARD}: damaged, its index"]


def test_fast_sees_sizes_and_metadata_but_no_flip(cache, flip):
    flip(cache / SHARD, 8 * 200)
    assert not kinds(cache, fast=True)
    flip(cache / "rows.zarr/train/source/zarr.json", 100)
    os.truncate(cache / "rows.zarr/train/target/c.0.0", 17)
    assert kinds(cache, fast=True) == {
        "rows.zarr/train/source/zarr.json": "damaged",
        "rows.zarr/train/target/c.0.0": "truncated",
    }


@pytest.mark.parametrize("size", [0, 1, 100, 10_000])
def test_a_shard_of_another_size_is_truncated(cache, size):
    os.truncate(cache / SHARD, size)
    assert kinds(cache) == {SHARD: "truncated"}


def test_a_missing_shard_is_named(cache):
    (cache / SHARD).unlink()
    assert kinds(cache) == {SHARD: "missing"}


def test_swapped_shards_name_each_other(cache):
    first, second = cache / SHARD, cache / SHARD.replace("c.1", "c.2")
    first.rename(cache / "aside")
    second.rename(first)
    (cache / "aside").rename(second)
    found = verify_cache(cache)
    assert {fault.kind for fault in found.faults} == {"swapped"}
    assert "c.2.0" in found.faults[0].detail


def test_a_shard_of_another_cache_is_damaged(cache, make_toy, tmp_path_factory):
    other_cache = tmp_path_factory.mktemp("other")
    make_toy(shuffle_seed=1).write(other_cache)
    shutil.copy(other_cache / SHARD, cache / SHARD)
    assert kinds(cache) == {SHARD: "damaged"}


@pytest.mark.parametrize("name", ["rows.zarr/train/source/c.99.0", "rows.zarr/train/notes.txt", "rows.zarr/c.0"])
def test_an_extra_file_is_named(cache, name):
    (cache / name).write_bytes(b"?")
    assert kinds(cache) == {name: "surplus"}


@pytest.mark.parametrize("name", [SHARD, "rows.zarr/train/source", "rows.zarr/train", "rows.zarr/held_out/tokens/c.0"])
def test_a_link_is_reported(cache, tmp_path_factory, name):
    away = tmp_path_factory.mktemp("away") / "real"
    (cache / name).rename(away)
    (cache / name).symlink_to(away)
    assert kinds(cache)[name] == "link"


def test_a_pipe_instead_of_a_shard_does_not_hang(cache):
    (cache / SHARD).unlink()
    os.mkfifo(cache / SHARD)
    assert kinds(cache) == {SHARD: "link"}


def test_a_damaged_journal_is_a_fault_and_the_rest_is_still_checked(cache, flip):
    flip(cache / "journal/part-00000.jsonl", 2000)
    found = verify_cache(cache)
    assert found.faults[0].kind == "unreadable"
    assert "Line " in found.faults[0].detail


def test_what_an_interrupted_writer_leaves_is_no_damage(tmp_path, toy):
    toy.write(tmp_path, stop=6)
    (tmp_path / "rows.zarr/train/source/c.5.0").write_bytes(b"not journalled")
    (tmp_path / "rows.zarr/train/source/.c.6.0.part-00000.aside").write_bytes(b"aside")
    found = verify_cache(tmp_path)
    assert not found.faults
    assert not found.complete
    assert len(found.leftovers) == 2


def test_every_partition_is_checked(tmp_path, make_toy, flip):
    make_toy(partitions=3, train_rows=96, held_out_rows=24).write(tmp_path)
    assert verify_cache(tmp_path).complete
    flip(tmp_path / "journal/part-00002.jsonl", 900)
    assert kinds(tmp_path) == {"journal/part-00002.jsonl": "unreadable"} | {
        name: kind for name, kind in kinds(tmp_path).items() if name.startswith("rows.zarr")
    }
