"""No file is trusted: random damage and files made to harm end in a typed error or a named fault.

NESTCODER_FULL=1 runs the full counts.
"""

import contextlib
import copy
import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.format.journal import journal_path, read_journal
from cache.format.manifest import parse_manifest, read_manifest
from cache.format.seal import seal_path
from cache.reader import CacheReader
from cache.tools.verify import verify_cache
from common.errors import DamagedError, MismatchError, NestcoderError
from common.hashing import canonical_json, chunk_hash, hash_bytes

FULL = os.environ.get("NESTCODER_FULL") == "1"
JOURNAL = journal_path(0)
FUZZ = settings(
    max_examples=2_000 if FULL else 30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def read_everything(cache):
    """What training and evaluation read."""
    reader = CacheReader.open(cache)
    assert reader.arrays["gain"].shape == (8,)
    for name in ("train", "held_out"):
        reader.split(name).rows(slice(None))
        assert reader.split(name).statistics.source.rows


class Flip:
    """One bit of a file, flipped while the block runs."""

    def __init__(self, path, bit):
        self.path, self.offset, self.mask = path, bit // 8, 1 << bit % 8

    def __enter__(self):
        data = self.path.read_bytes()
        self._write(data[self.offset] ^ self.mask)

    def __exit__(self, *_):
        self._write(self.path.read_bytes()[self.offset] ^ self.mask)

    def _write(self, byte):
        with self.path.open("r+b") as file:
            file.seek(self.offset)
            file.write(bytes([byte]))


def is_read_by_training(cache, path, bit):
    """Whether training reads this byte: rows, columns, small arrays, manifest or journal."""
    name = path.relative_to(cache).as_posix()
    if name.startswith("rows.zarr/parameters/gain/") or not name.startswith("rows.zarr"):
        return True
    index = 16 * 2 + 4 if "/source/" in name or "/target/" in name else 0
    held_out = 16 + 4 if "held_out" in name and index else index
    return path.name != "zarr.json" and bit // 8 < path.stat().st_size - held_out


def test_every_flipped_bit_is_detected(cache):
    random = np.random.default_rng(0)
    files = sorted(path for path in cache.rglob("*") if path.is_file() and path.parent.name != "locks")
    sizes = np.array([path.stat().st_size for path in files])
    count, seen = (4000 if FULL else 60), 0
    for turn in range(count):
        # Half of the flips anywhere among the bytes, half in a file drawn first, so that small ones are hit, too.
        path = files[random.choice(len(files), p=sizes / sizes.sum()) if turn % 2 else random.integers(len(files))]
        bit = int(random.integers(8 * path.stat().st_size))
        with Flip(path, bit):
            try:
                assert verify_cache(cache).faults, (path, bit)
            except (DamagedError, MismatchError):
                assert path.name == "manifest.json"
            if is_read_by_training(cache, path, bit):
                seen += 1
                with pytest.raises((DamagedError, MismatchError)):
                    read_everything(cache)
    assert seen > count // 3
    assert not verify_cache(cache).faults
    print(f"{count} flips detected, {seen} of them by the reader too")


@pytest.mark.parametrize("name", ["manifest.json", JOURNAL])
def test_every_bit_of_manifest_and_journal_is_detected(cache, name):
    path = cache / name
    bits = 8 * path.stat().st_size
    for bit in range(0, bits, max(1, bits // (4000 if FULL else 50))):
        with Flip(path, bit):
            try:
                found = verify_cache(cache, fast=True)
                assert [fault.kind for fault in found.faults if fault.path == name] == ["unreadable"], bit
            except (DamagedError, MismatchError):
                assert name == "manifest.json"


def test_a_journal_that_was_cut_promises_fewer_segments(cache):
    (cache / seal_path(0)).unlink()
    data = (cache / JOURNAL).read_bytes()
    without_newline = {length for length, byte in enumerate(data) if byte == ord("\n")}
    lines = 0
    for length in sorted(without_newline.union(range(0, len(data), 11 if FULL else 301))):
        (cache / JOURNAL).write_bytes(data[:length])
        promised = verify_cache(cache, fast=True).segments[0]
        assert lines <= promised <= 7
        lines = promised


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        [-1, 1 << 62, 1 << 64, "../../etc/passwd", "/etc/passwd", "rows.zarr/../../x", "numcodecs.pickle"]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def places(document, path=()):
    """Every place of a JSON document, as a path of keys and indices."""
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def replaced(document, path, value):
    if not path:
        return value
    document = copy.deepcopy(document)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return document


def sealed(document):
    """A manifest's bytes with a right fingerprint and checksum, and any other content."""
    document = {key: value for key, value in document.items() if key != "checksum"}
    determining = {key: document.get(key) for key in ("version", "special_ids")}
    for key, left_out in (("identity", "proof"), ("format", "codec")):
        value = document.get(key)
        determining[key] = {k: v for k, v in value.items() if k != left_out} if isinstance(value, dict) else value
    files = document.get("files")
    kept = {k: v for k, v in files.items() if k.startswith("rows.zarr/parameters/")} if isinstance(files, dict) else {}
    determining["parameters"] = kept
    document["fingerprint"] = hash_bytes(canonical_json(determining))
    document["checksum"] = hash_bytes(canonical_json(document))
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def opens_or_says_why(cache):
    for attempt in (read_manifest, verify_cache, read_everything):
        with contextlib.suppress(NestcoderError):
            attempt(cache)


@FUZZ
@given(data=st.data())
def test_a_manifest_of_any_content_is_read_or_refused(cache, whole_cache, data):
    document = json.loads((whole_cache / "manifest.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(sorted(places(document), key=str)))
        if not path:
            continue
        document = replaced(document, path, data.draw(json_values))
        if not isinstance(document, dict):
            return
    try:
        (cache / "manifest.json").write_bytes(sealed(document))
    except ValueError:
        return
    opens_or_says_why(cache)


@FUZZ
@given(data=st.data())
def test_a_journal_of_any_content_is_read_or_refused(cache, whole_cache, data):
    lines = [json.loads(line[17:]) for line in (whole_cache / JOURNAL).read_bytes().splitlines()]
    path = data.draw(st.sampled_from(sorted((inner for inner in places(lines) if inner), key=str)))
    try:
        texts = [canonical_json(line) for line in replaced(lines, path, data.draw(json_values))]
    except ValueError:
        return
    (cache / seal_path(0)).unlink(missing_ok=True)
    (cache / JOURNAL).write_bytes(b"".join(chunk_hash(text).encode() + b" " + text + b"\n" for text in texts))
    opens_or_says_why(cache)


@FUZZ
@given(noise=st.binary(max_size=400), keep=st.integers(0, 3000))
def test_noise_is_refused(cache, whole_cache, noise, keep):
    manifest = read_manifest(whole_cache)
    for name in ("manifest.json", JOURNAL):
        data = (whole_cache / name).read_bytes()[:keep] + noise
        (cache / name).write_bytes(data)
        try:
            if name == JOURNAL:
                options = {"geometry": manifest.geometry, "fingerprint": manifest.fingerprint, "partition": 0}
                read_journal(cache / name, **options)
            else:
                parse_manifest(data, location="here")
        except NestcoderError:
            pass


def small_arrays(cache):
    return CacheReader(cache, read_manifest(cache), verify=True, view="mlp_in", device="cpu").arrays


def changed(cache, **changes):
    document = json.loads((cache / "manifest.json").read_bytes())
    document["format"] |= changes
    (cache / "manifest.json").write_bytes(sealed(document))


@pytest.mark.parametrize(
    "changes",
    [
        {"train_rows": -1},
        {"train_rows": 1 << 47},
        {"d_source": 1 << 40},
        {"d_source": -8},
        {"d_source": 8.0},
        {"d_source": True},
        {"chunk_rows": 0},
        {"chunk_rows": 3},
        {"shard_rows": 1 << 44, "segment_rows": 1 << 44},
        {"parts": 1 << 40},
        {"parts": 4097},
        {"parts": 0},
        {"dtype": "object"},
        {"dtype": "int8; import os"},
        {"codec": "pickle"},
        {"codec": "zstd"},
        {"codec": None},
        {"target": "recompute"},
        {"target": "../x"},
        {"surplus": 1},
    ],
)
def test_impossible_shapes_are_damage(cache, changes):
    changed(cache, **changes)
    with pytest.raises(DamagedError):
        read_manifest(cache)


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../x", "rows.zarr/../../x", "rows.zarr//x", "rows.zarr/./x", "rows.zarr/x\0y", "rows.zarr/.x", ""],
)
def test_a_path_that_leaves_the_folder_is_damage(cache, path):
    document = json.loads((cache / "manifest.json").read_bytes())
    document["files"][path] = [5, "0" * 32]
    (cache / "manifest.json").write_bytes(sealed(document))
    with pytest.raises(DamagedError, match="path"):
        read_manifest(cache)


def test_a_manifest_sealed_here_has_the_fingerprint_of_the_format(cache):
    manifest = (cache / "manifest.json").read_bytes()
    assert sealed(json.loads(manifest)) == manifest


def test_an_unknown_version_is_named(cache):
    document = json.loads((cache / "manifest.json").read_bytes()) | {"version": 7}
    (cache / "manifest.json").write_bytes(sealed(document))
    with pytest.raises(MismatchError, match="version 7"):
        read_manifest(cache)


@pytest.mark.parametrize("codec", ["numcodecs.pickle", "pickle", "zstd", "unknown"])
def test_a_zarr_json_with_another_codec_is_refused_even_when_the_manifest_binds_it(cache, codec):
    name = "rows.zarr/parameters/gain/zarr.json"
    described = json.loads((cache / name).read_bytes())
    described["codecs"] = [{"name": codec}]
    rows = "rows.zarr/train/source/zarr.json"
    for path in (name, rows):
        data = json.dumps(described, indent=1, sort_keys=True).encode()
        (cache / path).write_bytes(data)
        document = json.loads((cache / "manifest.json").read_bytes())
        document["files"][path] = [len(data), hash_bytes(data)]
        before = (cache / "manifest.json").read_bytes()
        (cache / "manifest.json").write_bytes(sealed(document))
        (cache / JOURNAL).unlink(missing_ok=True)
        with pytest.raises(NestcoderError):
            small_arrays(cache)
        (cache / "manifest.json").write_bytes(before)


@pytest.mark.parametrize("shape", [[1 << 40], [-1], [8, 1 << 40], [0.5], "8", [], [8] * 40])
def test_a_small_array_of_an_impossible_shape_is_refused(cache, shape):
    name = "rows.zarr/parameters/gain/zarr.json"
    data = json.dumps(json.loads((cache / name).read_bytes()) | {"shape": shape}, indent=1, sort_keys=True).encode()
    (cache / name).write_bytes(data)
    document = json.loads((cache / "manifest.json").read_bytes())
    document["files"][name] = [len(data), hash_bytes(data)]
    (cache / "manifest.json").write_bytes(sealed(document))
    with pytest.raises(DamagedError):
        small_arrays(cache)


@pytest.mark.parametrize(
    "name", ["manifest.json", JOURNAL, "rows.zarr/train/source/c.0.0", "rows.zarr/train/source", "rows.zarr", "journal"]
)
def test_a_link_out_of_the_folder_is_not_followed_by_the_reader(cache, tmp_path, name):
    away = tmp_path / "away"
    (cache / name).rename(away)
    (cache / name).symlink_to(away)
    with pytest.raises(DamagedError):
        read_everything(cache)
