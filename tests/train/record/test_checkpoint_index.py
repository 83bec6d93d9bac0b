"""The index of checkpoints: a damaged line is noticed and costs only its own checkpoint."""

import json
from pathlib import Path

import pytest

from common.errors import MismatchError
from common.sealed.tensors import FileSeal
from train.record.checkpoint_index import INDEX_FILE, Entry, index_text, read_index

SEAL = FileSeal(100, "0" * 32)
ENTRIES = [Entry(step, SEAL, SEAL, FileSeal(step, "1" * 32), 0.5 if step % 20 else None) for step in (10, 20, 30)]


def read(folder: Path, data: bytes) -> tuple[list[int], bool]:
    (folder / INDEX_FILE).write_bytes(data)
    index = read_index(folder)
    assert all(entry in ENTRIES for entry in index.entries)
    return [entry.step for entry in index.entries], index.is_intact


def test_an_index_reads_back(tmp_path: Path) -> None:
    assert read_index(tmp_path).entries == []
    (tmp_path / INDEX_FILE).write_bytes(index_text(ENTRIES))
    assert read_index(tmp_path).entries == ENTRIES
    assert read_index(tmp_path).is_intact


def test_a_flipped_bit_costs_at_most_one_entry_and_is_noticed(tmp_path: Path) -> None:
    sound = index_text(ENTRIES)
    body = sound.index(b"\n") + 1
    for bit in range(8 * body, 8 * len(sound), 13):
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        steps, is_intact = read(tmp_path, bytes(data))
        lost = {10, 20, 30} - set(steps)
        # If the newline between two lines is hit, both become one line that cannot be read.
        assert len(lost) <= (2 if sound[bit // 8] == 10 else 1)
        assert not is_intact


def test_a_cut_index_keeps_its_whole_lines(tmp_path: Path) -> None:
    assert read(tmp_path, index_text(ENTRIES)[:-20]) == ([10, 20], False)
    assert read(tmp_path, b"") == ([], False)


def test_another_version_is_refused(tmp_path: Path) -> None:
    head, _, body = index_text(ENTRIES).partition(b"\n")
    newer = json.dumps(json.loads(head) | {"format_version": 2}).encode()
    with pytest.raises(MismatchError, match="format version 2"):
        read(tmp_path, newer + b"\n" + body)
