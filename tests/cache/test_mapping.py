"""Files in one range of memory: mapped where they fill pages, read where they do not, refused when they changed."""

import mmap
import os

import numpy as np
import pytest

from cache.storage.mapping import Region, open_plain
from common.errors import DamagedError, DiskError

PAGE = mmap.PAGESIZE


def file_of(path, size):
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    path.write_bytes(data.tobytes())
    return data


@pytest.mark.parametrize("size", [PAGE, 3 * PAGE, 100, PAGE + 1])
def test_a_file_appears_at_its_offset(tmp_path, size):
    """Its last 8 bytes, which are not rows, stay out."""
    data = file_of(tmp_path / "file", size + 8)
    region = Region(5 * PAGE)
    region.bytes[:] = 7
    region.map_file(tmp_path / "file", offset=PAGE, size_bytes=size, file_bytes=size + 8)
    assert (region.bytes[PAGE : PAGE + size] == data[:size]).all()
    assert (region.bytes[:PAGE] == 7).all()
    region.read_ahead(offset=PAGE, size_bytes=size)
    region.forget(offset=PAGE, size_bytes=size)


def test_an_array_outlives_its_region(tmp_path):
    data = file_of(tmp_path / "file", PAGE)
    region = Region(PAGE)
    region.map_file(tmp_path / "file", offset=0, size_bytes=PAGE, file_bytes=PAGE)
    view = region.bytes[10:20]
    del region
    assert (view == data[10:20]).all()


def test_a_mapped_file_that_was_cut_or_removed_is_noticed(tmp_path):
    file_of(tmp_path / "file", PAGE)
    region = Region(PAGE)
    region.map_file(tmp_path / "file", offset=0, size_bytes=PAGE, file_bytes=PAGE)
    region.check_size(0)
    os.truncate(tmp_path / "file", 10)
    with pytest.raises(DamagedError, match=f"10 bytes instead of {PAGE:,}"):
        region.check_size(0)
    (tmp_path / "file").unlink()
    with pytest.raises(DamagedError, match="missing"):
        region.check_size(0)


def test_a_file_that_is_no_shard_of_that_size_is_refused(tmp_path):
    file_of(tmp_path / "file", 20)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    os.close(open_plain(tmp_path / "file", size_bytes=20))
    for name, problem in (
        ("file", "20 bytes instead of 21"), ("link", "cannot be opened"), ("pipe", "not a plain file"),
        (".", "not a plain file"), ("nothing", "missing"),
    ):  # fmt: skip
        with pytest.raises(DamagedError, match=problem):
            open_plain(tmp_path / name, size_bytes=21)


def test_a_region_larger_than_the_address_space_is_refused_in_one_sentence():
    with pytest.raises(DiskError, match="refused to map"):
        Region(1 << 60)
