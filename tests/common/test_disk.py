"""The only module that changes the disk: files complete or not at all, watchers of operations, refusals."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import disk
from common.errors import DiskError, UsageError


def refusing(operation: str, number: int) -> Callable[[str, str, Path], None]:
    """A watcher that lets the disk refuse an operation."""

    def watcher(moment: str, name: str, path: Path) -> None:
        if moment == "before" and name == operation:
            raise OSError(number, os.strerror(number), str(path))

    return watcher


def test_a_file_appears_complete_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    disk.write_file(path, b"first")
    disk.write_file(path, [b"sec", b"ond"])
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("operation", ["write", "flush", "rename"])
def test_a_refused_write_leaves_what_was_there(operation: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    disk.write_file(path, b"before")
    with disk.watch(refusing(operation, errno.ENOSPC)), pytest.raises(DiskError) as caught:
        disk.write_file(path, b"after")
    assert "No space left on device" in caught.value.what
    assert "Free some space" in caught.value.remedy
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("threads", [1, 3])
def test_several_files_appear_in_one_call(threads: int, tmp_path: Path) -> None:
    files = [(tmp_path / "x" / str(number), [bytes([number])]) for number in range(3)]
    disk.write_files(files, tag="0", threads=threads)
    assert [(tmp_path / "x" / str(number)).read_bytes() for number in range(3)] == [b"\0", b"\1", b"\2"]


@pytest.mark.parametrize("operation", ["write", "flush", "rename"])
def test_several_threads_leave_nothing_of_a_refused_write(operation: str, tmp_path: Path) -> None:
    files = [(tmp_path / str(number), [bytes(1000)] * 50) for number in range(9)]
    with disk.watch(refusing(operation, errno.ENOSPC)), pytest.raises(DiskError) as caught:
        disk.write_files(files, tag="0", threads=3)
    assert "No space left on device" in caught.value.what
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("threads", [1, 3])
def test_nothing_is_left_half_written_where_the_pieces_raise_an_error_of_their_own(
    threads: int, tmp_path: Path
) -> None:
    def pieces() -> Iterator[bytes]:
        yield bytes(1000)
        raise RuntimeError("CUDA error")

    files = [(tmp_path / "a", [b"whole"]), (tmp_path / "b", pieces()), (tmp_path / "c", [b"whole"])]
    with pytest.raises(RuntimeError, match="CUDA error"):
        disk.write_files(files, tag="0", threads=threads)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_lines_are_appended_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    disk.append_line(path, b"one\n")
    disk.append_line(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    disk.truncate(path, 4)
    assert path.read_bytes() == b"one\n"
    with pytest.raises(AssertionError):
        disk.append_line(path, b"no newline")


def test_files_are_moved_and_removed_links_never_followed(tmp_path: Path) -> None:
    disk.write_file(tmp_path / "a", b"1")
    disk.move(tmp_path / "a", tmp_path / "b" / "c")
    assert (tmp_path / "b" / "c").read_bytes() == b"1"
    (tmp_path / "link").symlink_to(tmp_path / "b")
    disk.remove(tmp_path / "link")
    disk.remove(tmp_path / "absent")
    assert (tmp_path / "b" / "c").exists()
    disk.remove(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_every_operation_is_seen_before_and_after(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    with disk.watch(lambda moment, name, _path: seen.append((moment, name))):
        disk.write_file(tmp_path / "file", b"data")
    before = [name for moment, name in seen if moment == "before"]
    assert [name for moment, name in seen if moment == "after"] == before
    assert before.index("write") < before.index("flush") < before.index("rename") < before.index("flush a folder")


def test_a_missing_file_has_no_state_and_no_bytes(tmp_path: Path) -> None:
    disk.write_file(tmp_path / "file", b"data")
    assert disk.size_bytes(tmp_path / "file") == 4
    for absent in ("absent", "file/inside"):
        assert disk.state(tmp_path / absent) is None
        assert disk.size_bytes(tmp_path / absent) == 0


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert disk.free_bytes(tmp_path / "not" / "there") > 0


def test_a_path_with_a_nul_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="NUL"):
        disk.make_folder(tmp_path / "a\0b")
