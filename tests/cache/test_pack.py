import json

import numpy as np
import pytest
import tensorstore
import zarr

from cache.checksum import canonical_json, file_hash
from cache.codec import CODECS, decode, encoder
from cache.errors import DamagedError, MismatchError, UsageError
from cache.pack import pack_cache, unpack_cache, verify_pack
from cache.reader import CacheReader

FLOAT = {"dtype": "bfloat16", "chunk_rows": 64, "shard_rows": 128, "segment_rows": 256}


@pytest.fixture(scope="module")
def large(tmp_path_factory, make_toy):
    path = tmp_path_factory.mktemp("large")
    make_toy(train_rows=600, held_out_rows=70, d_source=48, d_target=32, **FLOAT).write(path)
    return path


@pytest.mark.parametrize("codec", CODECS)
def test_packing_and_unpacking_gives_every_byte_back(large, tmp_path, tree, codec):
    packed = pack_cache(large, tmp_path / "archive", codec=codec)
    assert packed.ratio < 1
    assert verify_pack(tmp_path / "archive") == packed
    assert unpack_cache(tmp_path / "archive", tmp_path / "back") == packed
    assert tree(tmp_path / "back") == tree(large)


@pytest.mark.parametrize("codec", CODECS)
def test_zarr_and_tensorstore_open_an_archive_as_it_lies(large, tmp_path, codec):
    pack_cache(large, tmp_path, codec=codec)
    before, after = (zarr.open_group(path / "rows.zarr", mode="r") for path in (large, tmp_path))
    for name in ("train/source", "train/target", "train/tokens", "held_out/source", "held_out/document"):
        assert (before[name][:] == after[name][:]).all()
        store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "rows.zarr" / name)}}
        assert (tensorstore.open(store).result().read().result() == before[name][:]).all()


def test_an_unknown_codec_is_refused_by_name(cache, tmp_path):
    with pytest.raises(UsageError, match="no codec 'pickle'"):
        pack_cache(cache, tmp_path / "archive", codec="pickle")


def test_an_unfinished_cache_is_not_packed(tmp_path, toy):
    toy.write(tmp_path / "cache", stop=6)
    with pytest.raises(UsageError, match="not finished"):
        pack_cache(tmp_path / "cache", tmp_path / "archive")


def test_damage_is_never_packed(cache, tmp_path, flip):
    flip(cache / "rows.zarr/train/source/c.1.0", 77)
    with pytest.raises(DamagedError, match=r"c\.1\.0"):
        pack_cache(cache, tmp_path / "archive")
    assert not (tmp_path / "archive/pack.json").exists()


def test_a_folder_in_use_is_not_overwritten(cache, tmp_path):
    pack_cache(cache, tmp_path / "archive")
    for target in (cache, tmp_path / "archive"):
        with pytest.raises(UsageError, match="already"):
            pack_cache(cache, target)
        with pytest.raises(UsageError, match="already"):
            unpack_cache(tmp_path / "archive", target)


def test_a_packed_cache_says_that_it_is_packed(cache, tmp_path):
    pack_cache(cache, tmp_path / "archive")
    with pytest.raises(UsageError, match=r"packed\.\n.*\n.*unpack"):
        CacheReader.open(tmp_path / "archive")


def test_every_flipped_bit_of_an_archive_is_found(cache, tmp_path, flip):
    pack_cache(cache, tmp_path)
    random = np.random.default_rng(0)
    for file in sorted(path for path in tmp_path.rglob("*") if path.is_file() and "cache" not in path.parts):
        if tmp_path / "cache" in file.parents:
            continue
        bit = int(random.integers(8 * file.stat().st_size))
        flip(file, bit)
        with pytest.raises((DamagedError, MismatchError)):
            verify_pack(tmp_path)
        flip(file, bit)
    verify_pack(tmp_path)


def rewrite(archive, **changes):
    document = json.loads((archive / "pack.json").read_bytes()) | changes
    document.pop("checksum")
    document["checksum"] = file_hash([canonical_json(document)])
    (archive / "pack.json").write_bytes(canonical_json(document))


def test_an_archive_made_to_harm_is_refused(cache, tmp_path):
    archive = tmp_path / "archive"
    pack_cache(cache, archive)
    files = json.loads((archive / "pack.json").read_bytes())["files"]
    for changes, problem in [
        ({"codec": "pickle"}, MismatchError),
        ({"codec": "../../x"}, MismatchError),
        ({"version": 2}, MismatchError),
        ({"files": {}}, DamagedError),
        ({"files": 5}, DamagedError),
        ({"files": files | {"promises/manifest.json": [1, "0"]}}, DamagedError),
    ]:
        rewrite(archive, **{"files": files, "codec": "zstd", "version": 1} | changes)
        with pytest.raises(problem):
            unpack_cache(archive, tmp_path / "back")
        assert not (tmp_path / "back/manifest.json").exists()


def test_a_bomb_takes_no_memory():
    bomb = encoder("zstd", 2)(bytes(1 << 26))
    with pytest.raises(DamagedError, match="67108864 bytes, not 64"):
        decode("zstd", bomb, 64)
    with pytest.raises(DamagedError, match="67108864 bytes, not 64"):
        decode("blosc-zstd", encoder("blosc-zstd", 2)(bytes(1 << 26)), 64)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [2, 200, 256, 300, 65_000, 70_000])
def test_a_chunk_of_any_size_and_no_other_decodes(codec, size):
    chunk = np.random.default_rng(size).integers(0, 9, size, dtype=np.uint8).tobytes()
    packed = encoder(codec, 2)(chunk)
    assert decode(codec, packed, size) == chunk
    for wrong in (packed[:-1], packed[:7], b"", packed + b"x" if codec != "zstd" else packed[:-3]):
        with pytest.raises(DamagedError):
            decode(codec, wrong, size)
