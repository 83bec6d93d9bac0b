import json
import shutil

import numpy as np
import pytest
import tensorstore
import torch
import zarr

from cache import loader
from cache.config import CacheSettings
from cache.format.codec import decode_into, encoder
from cache.format.journal import journal_path
from cache.loader import Loader
from cache.open import open_cache
from cache.reader import CacheReader
from cache.tools.pack import pack_cache
from cache.tools.repair import repair_cache
from cache.tools.verify import verify_cache
from cache.writer import CacheWriter
from common.disk import watch
from common.errors import DamagedError, InUseError, MismatchError, NestcoderError, UsageError

CODECS = ("zstd", "blosc-zstd", "blosc-zstd-bit", "blosc-lz4")
FLOAT = {"dtype": "bfloat16", "chunk_rows": 64, "shard_rows": 128, "segment_rows": 256}


@pytest.fixture(scope="module")
def large_toy(make_toy):
    return make_toy(train_rows=600, held_out_rows=70, d_source=48, d_target=32, **FLOAT)


@pytest.fixture(scope="module")
def large(tmp_path_factory, large_toy):
    path = tmp_path_factory.mktemp("large")
    large_toy.write(path)
    return path


@pytest.fixture(scope="module")
def packed_once(tmp_path_factory, large):
    path = tmp_path_factory.mktemp("packed") / "cache"
    pack_cache(large, path, codec="zstd")
    return path


@pytest.fixture
def packed(packed_once, tmp_path):
    shutil.copytree(packed_once, tmp_path / "packed")
    return tmp_path / "packed"


def same_rows(first, second):
    left, right = (CacheReader.open(path) for path in (first, second))
    assert left.fingerprint == right.fingerprint
    for name in ("train", "held_out"):
        split, expected_split = (reader.split(name) for reader in (left, right))
        rows, expected = split.rows(slice(None)), expected_split.rows(slice(None))
        assert torch.equal(rows.source, expected.source)
        assert torch.equal(rows.target, expected.target)
        for column in ("tokens", "document", "position"):
            assert (getattr(rows, column) == getattr(expected, column)).all()
        assert (split.statistics.source.pack() == expected_split.statistics.source.pack()).all()


@pytest.mark.parametrize("codec", CODECS)
def test_packing_and_unpacking_gives_every_byte_back(large, tmp_path, tree, codec):
    packed = pack_cache(large, tmp_path / "archive", codec=codec)
    assert packed.ratio < 1
    assert not verify_cache(tmp_path / "archive").faults
    same_rows(large, tmp_path / "archive")
    back = pack_cache(tmp_path / "archive", tmp_path / "back", codec="none")
    assert (back.bytes_before, back.bytes_after) == (packed.bytes_after, packed.bytes_before)
    assert tree(tmp_path / "back") == tree(large)


@pytest.mark.parametrize("codec", CODECS)
def test_a_cache_written_with_a_codec_is_the_one_packed_with_it(make_toy, large, tmp_path, tree, codec):
    make_toy(train_rows=600, held_out_rows=70, d_source=48, d_target=32, codec=codec, **FLOAT).write(
        tmp_path / "written"
    )
    pack_cache(large, tmp_path / "packed", codec=codec)
    assert tree(tmp_path / "written") == tree(tmp_path / "packed")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", ["int8", "float16", "float32"])
def test_zarr_and_tensorstore_open_a_packed_cache(cache, stream, tmp_path, codec, dtype):
    stream.write(tmp_path / "plain", dtype=dtype)
    pack_cache(tmp_path / "plain", tmp_path / "packed", codec=codec)
    before, after = (zarr.open_group(tmp_path / name / "rows.zarr", mode="r") for name in ("plain", "packed"))
    names = [name for name, found in before.members(max_depth=None) if isinstance(found, zarr.Array)]
    assert "train/source" in names
    for name in names:
        np.testing.assert_array_equal(before[name][:], after[name][:])
        store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "packed/rows.zarr" / name)}}
        np.testing.assert_array_equal(tensorstore.open(store).result().read().result(), before[name][:])


def test_a_packed_cache_serves_the_batches_of_the_plain_one_in_little_memory(large, packed, monkeypatch):
    pair = 64 * 2 * (48 + 32)
    monkeypatch.setattr("cache.loader.POOL_BYTES", 2 * pair)
    monkeypatch.setattr("cache.reader.UNPACKED_BYTES", 6 * pair)
    packed_reader, plain_reader = CacheReader.open(packed), CacheReader.open(large)
    options = {"batch_rows": 32, "seed": 3, "epochs": 2}
    with Loader(packed_reader, threads=2, **options) as batches, Loader(plain_reader, **options) as expected_batches:
        for batch, expected in zip(batches, expected_batches, strict=True):
            assert torch.equal(batch.source, expected.source)
            assert torch.equal(batch.target, expected.target)
    column = packed_reader.split("train").columns["source"]
    assert 0 < column._checked.sum() < len(column._checked)


def test_a_packed_cache_opens_on_a_url(packed, large, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    same = open_cache(f"file://{packed}").split("train").rows(slice(0, 100))
    assert torch.equal(same.source, CacheReader.open(large).split("train").rows(slice(0, 100)).source)


def test_an_unfinished_cache_is_not_packed(tmp_path, toy):
    toy.write(tmp_path / "cache", stop=6)
    with pytest.raises(UsageError, match="not finished"):
        pack_cache(tmp_path / "cache", tmp_path / "archive", codec="zstd")


def test_damage_is_never_packed(cache, tmp_path, flip):
    flip(cache / "rows.zarr/train/source/c.1.0", 77)
    with pytest.raises(DamagedError, match=r"c\.1\.0"):
        pack_cache(cache, tmp_path / "archive", codec="zstd")
    with pytest.raises(UsageError, match="not finished"):
        CacheReader.open(tmp_path / "archive")


def test_a_folder_in_use_is_not_overwritten(cache, large, tmp_path):
    pack_cache(cache, tmp_path / "archive", codec="zstd")
    with pytest.raises(UsageError, match="already"):
        pack_cache(cache, tmp_path / "archive", codec="zstd")
    for source, codec in [(cache, "blosc-lz4"), (large, "zstd")]:
        with pytest.raises(MismatchError, match="another cache"):
            pack_cache(source, tmp_path / "archive", codec=codec)
    with pytest.raises(NestcoderError):
        pack_cache(cache, cache, codec="zstd")


class StoppedError(Exception):
    pass


def test_an_interrupted_packing_goes_on(large, packed_once, tmp_path, tree):
    """Interrupted at every tenth operation of the disk, again and again."""
    count, reached = 0, 0

    def breaks(moment, _operation, _path):
        nonlocal count
        count += moment == "before"
        if count > reached:
            raise StoppedError

    for _ in range(200):
        count, reached = 0, reached + 10
        try:
            with watch(breaks):
                pack_cache(large, tmp_path / "out", codec="zstd")
            break
        except StoppedError:
            assert not verify_cache_or_nothing(tmp_path / "out")
    assert reached > 50
    assert tree(tmp_path / "out") == tree(packed_once)


def verify_cache_or_nothing(path):
    return verify_cache(path).faults if (path / "manifest.json").exists() else ()


def test_two_processes_do_not_pack_into_one_folder(cache, tmp_path):
    def again(moment, operation, _path):
        if operation == "append":
            with pytest.raises(InUseError):
                pack_cache(cache, tmp_path / "archive", codec="zstd")

    with watch(again):
        pack_cache(cache, tmp_path / "archive", codec="zstd")


def test_the_harvest_of_a_packed_cache_is_told_its_codec(make_toy, packed):
    with pytest.raises(MismatchError, match="has codec zstd, not none"):
        make_toy(train_rows=600, held_out_rows=70, d_source=48, d_target=32, **FLOAT).writer(packed)


def test_a_damaged_chunk_of_a_packed_cache_is_named_and_harvested_again(make_toy, packed_once, packed, flip, tree):
    name = "rows.zarr/train/source/c.1.0"
    flip(packed / name, 8 * ((packed / name).stat().st_size // 2))
    (fault,) = verify_cache(packed).faults
    assert (fault.kind, fault.path, len(fault.chunks)) == ("damaged", name, 1)
    with pytest.raises(DamagedError, match=r"c\.1\.0"):
        CacheReader.open(packed).split("train").rows(slice(None))
    assert repair_cache(packed).revoked == (("train", 0),)
    make_toy(train_rows=600, held_out_rows=70, d_source=48, d_target=32, codec="zstd", **FLOAT).write(packed)
    assert not verify_cache(packed).faults
    rows, undamaged = (
        {path: data for path, data in tree(folder).items() if "rows.zarr" in path} for folder in (packed, packed_once)
    )
    assert {path: data for path, data in rows.items() if "quarantine" not in path} == undamaged


def test_every_flipped_bit_of_a_packed_cache_is_found(packed, flip):
    random = np.random.default_rng(0)
    for file in sorted(path for path in packed.rglob("*") if path.is_file() and path.parent.name != "locks"):
        bit = int(random.integers(8 * file.stat().st_size))
        flip(file, bit)
        try:
            assert verify_cache(packed).faults, file
        except (DamagedError, MismatchError):
            assert file.name == "manifest.json"
        flip(file, bit)
    assert not verify_cache(packed).faults


def test_sizes_that_make_no_sense_are_damage(packed):
    path = packed / journal_path(0)
    lines = [json.loads(line[17:]) for line in path.read_bytes().splitlines()]
    from cache.format.journal import append

    for sizes in ([], [10], [-1, 5], [1 << 40, 1], ["1", 2], None, [5.0, 5.0], "ab", 7):
        path.unlink()
        for number, line in enumerate(lines[:2]):
            if number:
                line["files"][0] |= {"sizes": sizes}
            append(path, line)
        with pytest.raises(DamagedError, match="does not describe"):
            CacheReader.open(packed)


def decode(codec, data, size):
    out = bytearray(size)
    decode_into(out, codec, data)
    return out


def test_a_decompression_bomb_takes_no_memory():
    bomb = encoder("zstd", 2)(bytes(1 << 26))
    with pytest.raises(DamagedError, match="67108864 bytes instead of 64"):
        decode("zstd", bomb, 64)
    with pytest.raises(DamagedError, match="67108864 bytes instead of 64"):
        decode("blosc-zstd", encoder("blosc-zstd", 2)(bytes(1 << 26)), 64)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [2, 200, 256, 300, 65_000, 70_000])
def test_a_chunk_decodes_to_its_own_size_and_to_no_other(codec, size):
    chunk = np.random.default_rng(size).integers(0, 9, size, dtype=np.uint8).tobytes()
    packed = encoder(codec, 2)(chunk)
    assert decode(codec, packed, size) == chunk
    for wrong in (packed[:-1], packed[:7], b"", packed + b"x" if codec != "zstd" else packed[:-3]):
        with pytest.raises(DamagedError):
            decode(codec, wrong, size)


@pytest.mark.parametrize("threads", [1, 4])
def test_two_threads_may_unpack_the_same_chunk(tmp_path, monkeypatch, threads):
    """Batches need rows of two pools: one thread gathers rows that another reads in advance."""
    rows, width = 8192, 64
    monkeypatch.setattr(loader, "POOL_BYTES", 2 * 512 * width * 4)
    source = torch.randn(rows, width, generator=torch.Generator().manual_seed(0)).bfloat16()
    source[:, ::3] = 1.0
    number = np.arange(rows)
    settings = CacheSettings(chunk_rows=512, shard_rows=1024, segment_rows=4096, codec="zstd")
    sizes = {"d_source": width, "d_target": width, "train_rows": rows, "held_out_rows": 0}
    with CacheWriter(tmp_path, identity={}, settings=settings, special_ids=[0], arrays={}, **sizes) as writer:
        columns = (1 + number % 9).astype(np.int32), number // 32, (number % 16).astype(np.int32)
        writer.append(source, source * 2, *columns, held_out=False, cursor=None)
    rows = CacheReader.open(tmp_path).split("train").rows(slice(None))
    for seed in range(12):
        given = {"batch_rows": 384, "seed": seed, "epochs": 1, "threads": threads, "prefetch": 8, "mask_special": False}
        with loader.Loader(CacheReader.open(tmp_path), **given) as batches:
            for batch in batches:
                index = batches.rows_of(0, batch.index)
                assert torch.equal(batch.source, rows.source[index])
                assert torch.equal(batch.target, rows.target[index])
