"""A shard that is cut under a process that has it mapped: one sentence and exit code 3, not a silent death."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cache.loader import Loader
from cache.reader import CacheReader
from common.errors import DamagedError

ROOT = Path(__file__).parents[2]
SHARD = "rows.zarr/train/source/c.1.0"
READER = """
import os, sys
from cache.reader import CacheReader
rows = CacheReader.open(sys.argv[1]).split("train")
rows.rows(slice(0, 500))
os.truncate(sys.argv[1] + "/" + sys.argv[2], 100)
{read}
print("never reached")
"""


@pytest.fixture
def own_pages(pages, tmp_path):
    """A copy of the cache, to cut its files."""
    shutil.copytree(pages, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize("read", ["rows.rows(slice(0, 500))", "rows.columns['source'].values[:500].sum()"])
def test_a_cut_between_check_and_read_ends_with_a_sentence(own_pages, read):
    command = [sys.executable, "-c", READER.format(read=read), str(own_pages), SHARD]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == DamagedError.exit_code
    assert done.stdout == ""
    first, named_file, _ = done.stderr.splitlines()
    assert first == "nestcoder: A shard became shorter while it was read."
    assert named_file.strip() == str(own_pages / SHARD)


@pytest.mark.parametrize("size", [0, 100, 10_000_000])
def test_a_file_that_changed_its_size_is_refused_before_the_next_pool(own_pages, size):
    reader = CacheReader.open(own_pages)
    with Loader(reader, batch_rows=500, seed=0) as loader:
        loader.batch(0)
        loader._pools._reading.clear()
        os.truncate(own_pages / SHARD, size)
        with pytest.raises(DamagedError, match=rf"(?s)A shard has {size:,} bytes.*c\.1\.0"):
            loader.batch(0)


def test_chunks_not_yet_read_of_a_cut_file_are_refused(own_pages):
    rows = CacheReader.open(own_pages).split("train")
    rows.gather("source", np.arange(128, 130))
    os.truncate(own_pages / SHARD, 100)
    with pytest.raises(DamagedError, match="100 bytes"):
        rows.gather("source", np.arange(200, 210))
