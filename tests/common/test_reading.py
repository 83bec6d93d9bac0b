"""Whatever is at the path of a small file, it is read or refused by a typed error."""

import os

import pytest

from cache.reader import CacheReader
from cache.tools.verify import verify_cache
from common.errors import DamagedError, DiskError, NestcoderError, UsageError
from common.reading import parse_json, read_file


def test_a_plain_file_is_read_and_an_absent_one_is_none(tmp_path):
    (tmp_path / "file").write_bytes(b"text")
    assert read_file(tmp_path / "file", limit_bytes=4) == b"text"
    assert read_file(tmp_path / "none", limit_bytes=4) is None
    assert read_file(tmp_path / "file" / "below", limit_bytes=4) is None


def test_links_folders_pipes_and_large_files_are_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "."):
        with pytest.raises(DamagedError):
            read_file(tmp_path / name, limit_bytes=4)
    with pytest.raises(DamagedError, match="4 B; it can have at most 3 B"):
        read_file(tmp_path / "file", limit_bytes=3)


def test_a_file_without_permission_is_one_sentence(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("common.reading.os.open", refuse)
    with pytest.raises(DiskError, match=r"(?s)Permission denied.*owner"):
        read_file(tmp_path / "file", limit_bytes=4)


def test_a_path_with_a_nul_is_refused():
    for attempt in (CacheReader.open, verify_cache):
        with pytest.raises(UsageError, match="NUL"):
            attempt("a\0b") if attempt is CacheReader.open else attempt(__import__("pathlib").Path("a\0b"))


@pytest.mark.parametrize("text", ["{", "NaN", "[Infinity]", "9" * 5000, "[" * 300 + "]" * 300, "[" * 100_000, b"\xff"])
def test_json_that_is_in_none_of_our_files_is_a_value_error(text):
    with pytest.raises(ValueError):  # noqa: PT011 - every reason has its own words
        parse_json(text)


def test_ordinary_json_is_read():
    assert parse_json(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}


def test_a_manifest_of_deep_json_is_refused(cache_folder):
    (cache_folder / "manifest.json").write_bytes(b'{"identity": ' + b"[" * 50_000 + b"]" * 50_000 + b"}")
    with pytest.raises(NestcoderError):
        CacheReader.open(cache_folder)


@pytest.fixture
def cache_folder(tmp_path):
    return tmp_path
