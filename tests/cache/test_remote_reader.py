"""A cache at a URL: what is copied when, and a copy that went wrong is fetched again."""

import fsspec
import numpy as np
import pytest
import torch

from cache.reader import CacheReader
from cache.remote_reader import open_remote
from common.errors import DamagedError, UsageError

CHUNK = "rows.zarr/train/source/0"


def test_opening_copies_what_describes_the_cache_and_no_rows(bucket, whole_cache, tmp_path):
    reader = open_remote(bucket, local=tmp_path)
    folder = tmp_path / reader.fingerprint
    assert reader.path == folder
    assert (folder / "manifest.json").read_bytes() == (whole_cache / "manifest.json").read_bytes()
    assert (reader.arrays["gain"] == CacheReader.open(whole_cache).arrays["gain"]).all()
    assert reader.copies.fetched == 0
    reader.split("train").gather("source", np.array([0]))
    assert (folder / "chunks" / CHUNK).is_file()


def test_a_copy_that_went_wrong_is_fetched_again(bucket, whole_cache, tmp_path):
    reader = open_remote(bucket, local=tmp_path)
    copy = tmp_path / reader.fingerprint / "chunks" / CHUNK
    reader.split("train").gather("source", np.array([0]))
    copy.write_bytes(bytes(copy.stat().st_size))
    found = open_remote(bucket, local=tmp_path).split("train").gather("source", np.array([0]))
    assert torch.equal(found, CacheReader.open(whole_cache).split("train").gather("source", np.array([0])))


def test_damage_at_the_url_is_named_there(bucket, tmp_path):
    system = fsspec.filesystem("memory")
    name = "/bucket/toy/layer03/cache/rows.zarr/train/source/c.0.0"
    system.pipe_file(name, bytes(len(system.cat_file(name))))
    reader = open_remote(bucket, local=tmp_path)
    with pytest.raises(DamagedError, match="does not match its checksum") as caught:
        reader.split("train").gather("source", np.array([0]))
    assert caught.value.where == f"{bucket}/rows.zarr/train/source/c.0.0"


def test_a_url_without_a_cache(tmp_path):
    with pytest.raises(DamagedError, match="missing"):
        open_remote("memory://bucket/nothing", local=tmp_path)
    with pytest.raises(UsageError, match="cannot be opened"):
        open_remote("nosuch://bucket/cache", local=tmp_path)
