"""What a file system does not offer is said before any work and can be accepted; locks leave nothing behind."""

import errno
import fcntl
import os
import stat

import pytest

from common import disk
from common.errors import DiskError, InUseError, UsageError


@pytest.fixture(autouse=True)
def strict():
    yield
    disk.accept_weak_disk(False)


def refuse_locks(monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def refuse_folder_flushes(monkeypatch, number):
    flush = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named_and_can_be_accepted(tmp_path, monkeypatch, number):
    refuse_locks(monkeypatch, number)
    with pytest.raises(DiskError, match=r"(?s)does not lock files.*cache\.weak_disk"):
        disk.check_promises(tmp_path / "not" / "yet")
    with pytest.raises(DiskError, match="cache\\.weak_disk"), disk.lock(tmp_path / "lock"):
        pass
    assert list(tmp_path.iterdir()) == [] or [path.name for path in tmp_path.iterdir()] == ["lock"]
    disk.accept_weak_disk(True)
    disk.check_promises(tmp_path)
    with disk.lock(tmp_path / "lock"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
def test_a_file_system_that_flushes_no_folders_is_named_and_can_be_accepted(tmp_path, monkeypatch, number):
    refuse_folder_flushes(monkeypatch, number)
    with pytest.raises(DiskError, match=r"(?s)does not flush folders.*cache\.weak_disk"):
        disk.check_promises(tmp_path)
    disk.accept_weak_disk(True)
    disk.check_promises(tmp_path)
    disk.write_file(tmp_path / "folder" / "file", b"text")
    assert (tmp_path / "folder" / "file").read_bytes() == b"text"


def test_a_disk_that_fails_is_not_taken_for_a_weak_one(tmp_path, monkeypatch):
    refuse_folder_flushes(monkeypatch, errno.EIO)
    disk.accept_weak_disk(True)
    with pytest.raises(DiskError, match="Input/output error"):
        disk.sync_folder(tmp_path)


def test_a_lock_goes_with_its_block_and_excludes_meanwhile(tmp_path):
    path = tmp_path / "locks" / "one"
    with disk.lock(path):
        assert path.exists()
        with pytest.raises(InUseError, match=rf"process {os.getpid()} on "), disk.lock(path):
            pass
        assert path.exists(), "the loser leaves the winner's lock alone"
    assert not path.exists()
    with disk.lock_all([path, tmp_path / "locks" / "two"]):
        assert len(list(path.parent.iterdir())) == 2
    assert list(path.parent.iterdir()) == []


def test_a_lock_that_was_unlinked_meanwhile_is_no_lock(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    take = disk._take
    turns = []

    def unlinking(descriptor, at):
        take(descriptor, at)
        turns.append(at)
        if len(turns) == 1:
            path.unlink()

    monkeypatch.setattr(disk, "_take", unlinking)
    with disk.lock(path):
        assert len(turns) == 2
        assert path.exists()


def test_a_path_with_a_nul_is_refused(tmp_path):
    with pytest.raises(UsageError, match="NUL"):
        disk.make_folder(tmp_path / "a\0b")
