"""Every changed, missing or forged byte of files that are listed is found."""

from pathlib import Path

import pytest

from common.errors import DamagedError
from common.sealed.checksums import CHECKSUMS_FILE, checksums_of, faults_of

FILES = {"a.txt": b"first", "b.json": b"{}"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in (*FILES.items(), (CHECKSUMS_FILE, checksums_of(FILES))):
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_files_as_they_were_written_are_sound(folder: Path) -> None:
    assert faults_of(folder) == []


def test_every_flipped_byte_of_every_file_is_found(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for index in range(len(data)):
            path.write_bytes(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
            try:
                found = faults_of(folder)
            except DamagedError:
                found = ["the list itself"]
            # A flipped space between the entries of the list may mean the same.
            assert found or path.name == CHECKSUMS_FILE, (path.name, index)
            if path.name == CHECKSUMS_FILE and not found:
                assert data[index : index + 1].isspace()
        path.write_bytes(data)


def test_missing_files_and_a_missing_list_are_named(folder: Path) -> None:
    (folder / "a.txt").unlink()
    assert faults_of(folder) == [f"{folder / 'a.txt'}: missing"]
    (folder / CHECKSUMS_FILE).write_text('{"files": {"a": NaN}, "xxh3_128": null}')
    with pytest.raises(DamagedError, match=r"another|does not match"):
        faults_of(folder)
    (folder / CHECKSUMS_FILE).unlink()
    with pytest.raises(DamagedError, match="missing"):
        faults_of(folder)
