"""Groups and partitions: every row is in one segment of one partition, every segment has files of its own."""

import pytest

from cache.config import CacheSettings
from cache.format.manifest import make_geometry

SMALL = {"chunk_rows": 4, "shard_rows": 8, "segment_rows": 16, "held_out_fraction": 0.25}


def geometry(partitions=1, rows=50, **settings):
    sizes = {"d_source": 8, "d_target": 6, "train_rows": rows, "held_out_rows": 11}
    return make_geometry(CacheSettings(**SMALL | settings), **sizes, partitions=partitions)


@pytest.mark.parametrize("partitions", [1, 2, 3, 7])
def test_partitions_share_the_segments_and_rows_out(partitions):
    made = geometry(partitions)
    for name, group in made.groups.items():
        segments = [segment for partition in range(partitions) for segment in made.partition_segments(name, partition)]
        assert segments == list(range(group.segments))
        assert sum(made.partition_rows(name, partition) for partition in range(partitions)) == group.rows
        assert sum(group.rows_in(segment) for segment in segments) == group.rows


@pytest.mark.parametrize("settings", [{}, {"dtype": "int8"}, {"target": "recompute"}])
def test_no_two_segments_share_a_file_and_none_is_left_out(settings):
    group = geometry(**settings).groups["train"]
    files = [
        array.file_path(number) for segment in range(group.segments) for array, number in group.segment_files(segment)
    ]
    assert len(files) == len(set(files))
    assert set(files) == {array.file_path(n) for array in group.arrays.values() for n in range(array.files)}


def test_a_cache_without_targets_has_no_array_of_them():
    assert "target" not in geometry(target="recompute").groups["train"].arrays
    assert {"source_scale", "target_channel"} <= geometry(dtype="int8").groups["train"].arrays.keys()


def test_a_held_out_shard_fills_about_as_fast_as_a_segment():
    assert geometry().groups["held_out"].segment_rows == 4
    assert geometry(segment_rows=64).groups["held_out"].segment_rows == 8, "never more than a shard"
