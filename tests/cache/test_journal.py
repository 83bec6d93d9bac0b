"""The journal's lines: what was committed is read back, what a crash cut is left out, anything else is damage."""

import pytest

from cache.format.journal import journal_line, journal_path, parse_journal, read_line, read_point
from cache.format.manifest import read_manifest
from common.errors import DamagedError, MismatchError


def test_a_line_reads_back_and_any_changed_byte_is_seen():
    line = journal_line({"n": 3, "a": [1, "b"]})
    assert read_line(line[:-1]) == {"n": 3, "a": [1, "b"]}
    for offset in range(len(line) - 1):
        changed = bytearray(line[:-1])
        changed[offset] ^= 1
        with pytest.raises(ValueError, match="torn"):
            read_line(bytes(changed))


def test_a_point_without_counts_is_refused():
    assert read_point({"cursor": None, "train": 3, "held_out": 0}).train == 3
    for wrong in (-1, 2.0, "2", True):
        with pytest.raises(ValueError, match="train"):
            read_point({"cursor": None, "train": wrong, "held_out": 0})


def test_a_journal_that_was_cut_anywhere_names_the_lines_before_the_cut(whole_cache):
    path = whole_cache / journal_path(0)
    manifest = read_manifest(whole_cache)
    data = path.read_bytes()
    options = {"geometry": manifest.geometry, "fingerprint": manifest.fingerprint, "partition": 0}
    ends = [offset + 1 for offset, byte in enumerate(data) if byte == ord("\n")]
    for length in (0, 5, *ends, ends[2] + 30):
        journal = parse_journal(data[:length], path, **options)
        assert journal.intact_bytes == max((end for end in ends if end <= length), default=0)
        assert len(journal.commits) == max(0, sum(end <= length for end in ends) - 1)
    with pytest.raises(DamagedError, match="Line 2"):
        parse_journal(data[: ends[0]] + data[ends[1] :], path, **options)
    with pytest.raises(MismatchError, match="The journal belongs to cache"):
        parse_journal(data, path, **options | {"partition": 1})
