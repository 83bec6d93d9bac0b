"""A kill or an error at every operation on the disk, then runs to the end: always the bytes of a run left alone.

A crash point costs a fork of this process, in which everything is imported already. ``NESTCODER_CRASH_STEP=1`` tries
every operation instead of every few.
"""

import errno
import os
import random
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from cache.reader import CacheReader
from common import disk
from common.errors import DiskError, UsageError

STEP = int(os.environ.get("NESTCODER_CRASH_STEP", "13"))
SIZES = {"train_rows": 21, "held_out_rows": 6}


@pytest.fixture
def folder():
    """A folder in memory where the system has one: a kill leaves the same there, and flushing costs nothing."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    yield path
    shutil.rmtree(path)


class Fault:
    """Does something at the ``at``-th operation, before or after it. ``count`` is how many there have been."""

    def __init__(self, at, when, act):
        self.at, self.when, self.act, self.count = at, when, act, 0

    def __call__(self, when, operation, path):
        self.count += when == "before"
        if self.count == self.at and when == self.when:
            self.act(operation, path)


def write(stream, path, watcher=None):
    with disk.watch(watcher or (lambda *_: None)), stream.open_writer(path, **SIZES) as writer:
        stream.feed(writer, batch=2)


def killed(stream, path, fault):
    """Write in a fork; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            write(stream, path, fault)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def kill(_operation, _path):
    os.kill(os.getpid(), signal.SIGKILL)


def tear(operation, path):
    """Leave half of what was written last, as a power cut may."""
    if operation in {"write", "append"}:
        whole = path.read_bytes()
        kept = whole.rstrip(b"\n").rfind(b"\n") + 1 if operation == "append" else 0
        os.truncate(path, (kept + len(whole)) // 2)
    kill(operation, path)


@pytest.fixture(scope="module")
def alone(stream, tmp_path_factory):
    """The bytes of a run that nothing disturbed, and how many operations it took."""
    path, counter = tmp_path_factory.mktemp("alone") / "cache", Fault(0, "", kill)
    write(stream, path, counter)
    return stream.tree(path), counter.count


@pytest.mark.parametrize(("when", "act"), [("before", kill), ("after", kill), ("after", tear)])
def test_a_kill_at_any_operation_costs_nothing_but_time(stream, folder, alone, when, act):
    whole, operations = alone
    assert operations > 100
    for at in range(1 + len(act.__name__ + when) % STEP, operations + 1, STEP):
        path = folder / str(at)
        assert killed(stream, path, Fault(at, when, act))
        refuses_what_is_unfinished(path)
        write(stream, path)
        assert stream.tree(path) == whole, f"{act.__name__} {when} operation {at}"
        shutil.rmtree(path)


def refuses_what_is_unfinished(path):
    try:
        CacheReader.open(path)
    except UsageError:
        return


def test_kills_during_recovery_change_nothing_either(stream, folder, alone):
    whole, operations = alone
    chance = random.Random(0)
    for run in range(max(2, 60 // STEP)):
        path = folder / str(run)
        while killed(stream, path, Fault(chance.randrange(1, operations), "after", chance.choice((kill, tear)))):
            pass
        assert stream.tree(path) == whole
        shutil.rmtree(path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_an_error_at_any_operation_is_one_sentence_and_a_rerun_goes_on(stream, folder, alone, number):
    whole, operations = alone

    def fail(_operation, path):
        raise OSError(number, os.strerror(number), path)

    for at in range(1 + number % STEP, operations + 1, STEP):
        path = folder / str(at)
        with pytest.raises(DiskError, match=os.strerror(number)):
            write(stream, path, Fault(at, "before", fail))
        assert not list(path.rglob("*.aside"))
        write(stream, path)
        assert stream.tree(path) == whole
        shutil.rmtree(path)


@pytest.mark.parametrize("limit_bytes", [1, 100, 300, 900])
def test_a_file_that_may_not_grow_ends_the_run_with_the_systems_own_words(stream, folder, alone, limit_bytes):
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        try:
            write(stream, folder / "cache")
        except DiskError as error:
            os._exit(error.exit_code)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == DiskError.exit_code
    write(stream, folder / "cache")
    assert stream.tree(folder / "cache") == alone[0]
