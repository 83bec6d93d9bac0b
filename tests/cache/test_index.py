"""The index names every file of a cache, and a journal that cannot be read is a fault of its own."""

from cache.tools.index import read_index


def test_every_file_below_rows_zarr_is_named(whole_cache):
    index = read_index(whole_cache)
    there = {
        path.relative_to(whole_cache).as_posix() for path in (whole_cache / "rows.zarr").rglob("*") if path.is_file()
    }
    assert set(index.files) == there
    assert index.bytes == sum((whole_cache / name).stat().st_size for name in there)
    assert index.segments == (7, 7)
    assert not index.faults


def test_a_segment_that_is_not_committed_names_no_file(cache):
    journal = cache / "journal/part-00000.jsonl"
    (cache / "seals/part-00000.jsonl").unlink()
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:3]))
    index = read_index(cache)
    assert index.segments == (2, 7)
    assert {file.segment for file in index.files.values() if file.segment} == set(index.journals[0].commits)
    journal.write_bytes(b"no journal\n")
    assert [fault.path for fault in read_index(cache).faults] == ["journal/part-00000.jsonl"]
