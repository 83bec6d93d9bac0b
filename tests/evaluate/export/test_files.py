"""A folder of an export appears complete or not at all."""

from pathlib import Path

import pytest

from common.errors import UsageError
from evaluate.export.files import Files, as_line, packed, write_folder


def test_the_folder_has_the_files(tmp_path: Path) -> None:
    def files() -> Files:
        yield "deep/one.txt", (b"a", b"b")
        yield "two.txt", (b"",)

    write_folder(tmp_path / "out", files())
    assert (tmp_path / "out" / "deep" / "one.txt").read_bytes() == b"ab"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(UsageError, match="already"):
        write_folder(tmp_path / "out", files())


def test_an_export_that_fails_leaves_no_folder_and_can_be_repeated(tmp_path: Path) -> None:
    def failing() -> Files:
        yield "one.txt", (b"a",)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write_folder(tmp_path / "out", failing())
    assert not (tmp_path / "out").exists()
    write_folder(tmp_path / "out", (file for file in [("other.txt", (b"b",))]))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["other.txt"]


def test_the_same_data_give_the_same_bytes() -> None:
    assert packed(b"text") == packed(b"text")
    assert as_line({"text": "ä\n"}) == '{"text":"ä\\n"}\n'.encode()
    with pytest.raises(ValueError, match="JSON"):
        as_line(float("nan"))
