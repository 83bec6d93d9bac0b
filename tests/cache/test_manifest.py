"""The manifest: one file that says what a cache is; any change of it is refused."""

import json
from dataclasses import replace

import pytest

from cache.config import CacheSettings
from cache.format.manifest import (
    MANIFEST,
    first_difference,
    make_geometry,
    parse_manifest,
    read_bound,
    read_manifest,
)
from common.errors import DamagedError, MismatchError, UsageError
from common.hashing import canonical_json, hash_bytes


@pytest.fixture
def manifest(whole_cache):
    return read_manifest(whole_cache)


def test_a_written_manifest_is_read_back(manifest):
    assert parse_manifest(manifest.to_json(), location="here") == manifest


def test_every_flipped_bit_is_refused(manifest):
    data = bytearray(manifest.to_json())
    for bit in range(0, 8 * len(data), 61):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises((DamagedError, MismatchError)):
            parse_manifest(bytes(data), location="here")
        data[bit // 8] ^= 1 << bit % 8


def resealed(manifest, **changed):
    """A manifest with other fields and a checksum that fits them."""
    document = json.loads(manifest.to_json()) | changed
    del document["checksum"]
    document["checksum"] = hash_bytes(canonical_json(document))
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


@pytest.mark.parametrize(("changed", "error", "problem"), [
    ({"version": 99}, MismatchError, "format version 99"),
    ({"special_ids": [-1]}, DamagedError, "is not valid"),
    ({"fingerprint": "0" * 32}, DamagedError, "fingerprint"),
    ({"files": {"../outside": [1, "0" * 32]}}, DamagedError, "path"),
    ({"more": 1}, DamagedError, "not in the form"),
])  # fmt: skip
def test_a_sealed_manifest_that_makes_no_sense_is_refused(manifest, changed, error, problem):
    with pytest.raises(error, match=problem):
        parse_manifest(resealed(manifest, **changed), location="here")


def test_the_fingerprint_is_of_what_determines_the_rows(manifest):
    same = (
        replace(manifest, written_with={"nestcoder": "other"}),
        replace(manifest, geometry=replace(manifest.geometry, codec="zstd")),
        replace(manifest, identity=manifest.identity | {"proof": "other"}),
    )
    different = (
        replace(manifest, shuffle_seed=1),
        replace(manifest, special_ids=(0, 1)),
        replace(manifest, identity=manifest.identity | {"layer": 4}),
        replace(manifest, geometry=replace(manifest.geometry, train_rows=49)),
    )
    assert {each.fingerprint for each in same} == {manifest.fingerprint}
    assert len({each.fingerprint for each in (manifest, *different)}) == 5


def test_a_missing_cache_and_a_lost_manifest_have_different_messages(cache, tmp_path):
    with pytest.raises(UsageError, match="There is no cache here"):
        read_manifest(tmp_path / "nothing")
    (cache / MANIFEST).unlink()
    with pytest.raises(UsageError, match="its rows are still here"):
        read_manifest(cache)


@pytest.mark.parametrize(
    "sizes", [{"train_rows": -1}, {"d_source": 0}, {"d_source": 1 << 25}, {"partitions": 5000}, {"train_rows": 1 << 50}]
)
def test_sizes_that_no_cache_has_are_refused(sizes):
    usual = {"d_source": 8, "d_target": 8, "train_rows": 100, "held_out_rows": 10, "partitions": 1}
    with pytest.raises(UsageError, match="A cache cannot have these sizes"):
        make_geometry(CacheSettings(), **usual | sizes)


def test_a_bound_file_is_the_one_that_was_written(cache, manifest):
    name, bound = next(item for item in manifest.files.items() if item[0].endswith("/c.0"))
    data = read_bound(cache, name, bound)
    (cache / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedError, match="does not match its checksum"):
        read_bound(cache, name, bound)
    (cache / name).unlink()
    with pytest.raises(DamagedError, match="missing or has another size"):
        read_bound(cache, name, bound)


def test_the_first_difference_is_named():
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) == ""
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "a.b is 2, not 1"
    assert first_difference({"a": 1}, {"a": True}) == "a is True, not 1"
