"""What a file system does not offer is reported before any work and can be accepted; locks leave no file."""

import errno
import fcntl
import os
import stat
import subprocess
from pathlib import Path

import pytest

from common import disk
from common.errors import DiskError, InUseError
from common.processes import locks


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
    with pytest.raises(DiskError, match=r"(?s)cannot lock files.*cache\.weak_disk"):
        locks.check_file_system(tmp_path / "not" / "yet")
    with pytest.raises(DiskError, match="cache\\.weak_disk"), locks.lock(tmp_path / "lock"):
        pass
    assert list(tmp_path.iterdir()) == [] or [path.name for path in tmp_path.iterdir()] == ["lock"]
    disk.accept_weak_disk(True)
    locks.check_file_system(tmp_path)
    with locks.lock(tmp_path / "lock"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM])
def test_a_file_system_that_flushes_no_folders_is_named_and_can_be_accepted(tmp_path, monkeypatch, number):
    refuse_folder_flushes(monkeypatch, number)
    with pytest.raises(DiskError, match=r"(?s)cannot flush folders.*cache\.weak_disk"):
        locks.check_file_system(tmp_path)
    disk.accept_weak_disk(True)
    locks.check_file_system(tmp_path)
    disk.write_file(tmp_path / "folder" / "file", b"text")
    assert (tmp_path / "folder" / "file").read_bytes() == b"text"


def test_a_failing_disk_is_not_mistaken_for_one_without_locks(tmp_path, monkeypatch):
    refuse_folder_flushes(monkeypatch, errno.EIO)
    disk.accept_weak_disk(True)
    with pytest.raises(DiskError, match="Input/output error"):
        disk.sync_folder(tmp_path)


def test_a_lock_ends_with_its_block_and_excludes_others_until_then(tmp_path):
    path = tmp_path / "locks" / "one"
    with locks.lock(path):
        assert path.exists()
        with pytest.raises(InUseError, match=rf"process {os.getpid()} on "), locks.lock(path):
            pass
        assert path.exists(), "the loser leaves the winner's lock alone"
    assert not path.exists()
    with locks.lock_all([path, tmp_path / "locks" / "two"]):
        assert len(list(path.parent.iterdir())) == 2
    assert list(path.parent.iterdir()) == []


def test_a_lock_file_that_was_removed_meanwhile_is_locked_again(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    take = locks._take
    turns = []

    def unlinking(descriptor, taken_path):
        take(descriptor, taken_path)
        turns.append(taken_path)
        if len(turns) == 1:
            path.unlink()

    monkeypatch.setattr(locks, "_take", unlinking)
    with locks.lock(path):
        assert len(turns) == 2
        assert path.exists()


def test_only_one_process_has_a_lock(warm_python, tmp_path):
    path = tmp_path / "lock"
    code = f"from pathlib import Path; from common.processes import locks\nwith locks.lock(Path({str(path)!r})): pass"
    command = [warm_python, "-c", code]
    root = Path(__file__).resolve().parents[3]
    with locks.lock(path):
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        assert InUseError.__name__ in done.stderr
        assert f"process {os.getpid()} on" in done.stderr
    assert subprocess.run(command, cwd=root).returncode == 0
