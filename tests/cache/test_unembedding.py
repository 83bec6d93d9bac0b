"""The unembedding beside the rows: read as it was stored, no part of the fingerprint, from a URL when asked for."""

import fsspec
import numpy as np
import pytest
import torch

from cache.config import CacheSettings
from cache.reader import CacheReader
from cache.remote_reader import open_remote
from cache.storage.unembedding import LIMIT_BYTES, Unembedding, is_small, stored_bytes, unembedding_of_arrays
from cache.tools.verify import verify_cache
from cache.writer import CacheWriter
from common.errors import DamagedError

WIDTH, VOCABULARY = 8, 30
SMALL = CacheSettings(chunk_rows=8, shard_rows=16, segment_rows=32, held_out_fraction=0.25)


def given():
    generator = torch.Generator().manual_seed(1)
    W_U, gain = torch.randn(VOCABULARY, WIDTH, generator=generator), torch.rand(WIDTH, generator=generator)
    return Unembedding(W_U, gain, centred=True, origin="here")


def write(path, arrays):
    rows = {"tokens": np.arange(32), "document": np.arange(32), "position": np.zeros(32)}
    rows = {name: values.astype(np.int64 if name == "document" else np.int32) for name, values in rows.items()}
    sides = dict.fromkeys(("source", "target"), torch.arange(32 * WIDTH).view(32, WIDTH).bfloat16())
    sizes = {"d_source": WIDTH, "d_target": WIDTH, "train_rows": 32, "held_out_rows": 16, "special_ids": []}
    with CacheWriter(path, identity={"model": "toy"}, settings=SMALL, **sizes, arrays=arrays) as writer:
        writer.append(**rows, **sides, held_out=False, cursor=0)
        half = {name: values[:16] for name, values in {**rows, **sides}.items()}
        writer.append(**half, held_out=True, cursor=1)
    return CacheReader.open(path)


@pytest.fixture
def reader(tmp_path):
    return write(tmp_path / "with", {"gain": np.ones(WIDTH, np.float32), **given().arrays()})


def test_what_was_stored_is_read_in_bfloat16_and_the_gain_exactly(reader):
    found = reader.unembedding()
    assert reader.has_unembedding
    assert torch.equal(found.W_U, given().W_U.bfloat16().float())
    assert torch.equal(found.gain, given().gain)
    assert found.centred
    assert found.origin == "toy, as the cache stores it in bfloat16"
    assert set(reader.arrays) == {"gain"}


def test_the_same_rows_without_it_have_the_same_fingerprint(reader, tmp_path):
    without = write(tmp_path / "without", {"gain": np.ones(WIDTH, np.float32)})
    assert without.fingerprint == reader.fingerprint
    assert not without.has_unembedding
    assert write(tmp_path / "other", {"gain": np.zeros(WIDTH, np.float32)}).fingerprint != reader.fingerprint


def test_a_flipped_bit_is_found(reader):
    path = next((reader.path / "rows.zarr/parameters/unembedding.weight").glob("c.*"))
    data = bytearray(path.read_bytes())
    data[5] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match="checksum"):
        reader.unembedding()
    assert [str(path.relative_to(reader.path))] == [fault.path for fault in verify_cache(reader.path).faults]


@pytest.mark.parametrize(
    "changed",
    [
        {"unembedding.gain": np.ones(WIDTH + 1, np.float32)},
        {"unembedding.gain": np.ones(WIDTH, np.float64)},
        {"unembedding.weight": np.zeros(5, np.uint8)},
        {"unembedding.json": np.frombuffer(b'{"centred": 1}', np.uint8)},
        {"unembedding.json": np.frombuffer(b"[]", np.uint8)},
    ],
)
def test_what_makes_no_sense_is_damage(changed):
    with pytest.raises(DamagedError, match="unembedding"):
        unembedding_of_arrays(given().arrays() | changed, origin="here")


def test_from_a_url_it_is_copied_when_it_is_asked_for(reader, tmp_path):
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.put(f"{reader.path}/", "/bucket/cache/", recursive=True)
    remote = open_remote("memory://bucket/cache", local=tmp_path / "local")
    copied = remote.path / "rows.zarr/parameters/unembedding.weight"
    assert remote.arrays["gain"].sum() == WIDTH
    assert not copied.exists()
    assert torch.equal(remote.unembedding().W_U, reader.unembedding().W_U)
    assert copied.is_dir()
    system.store.clear()


def test_small_means_within_the_limit_or_little_beside_the_rows():
    assert stored_bytes(50_257, 768) == 50_257 * 768 * 2
    assert is_small(32_768, 1024, rows_bytes=0)
    assert stored_bytes(32_768, 1024) == LIMIT_BYTES
    assert not is_small(50_257, 768, rows_bytes=10**9)
    assert is_small(50_257, 768, rows_bytes=2 * 10**9)
