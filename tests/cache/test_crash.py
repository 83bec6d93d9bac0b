"""A kill or an error at every operation on the disk, then runs to the end: always the bytes of an undisturbed run.

A crash point costs a fork of this process, in which everything is imported already. ``NESTCODER_CRASH_STEP=1`` tries
every operation instead of a few.
"""

import errno
import os
import random
import resource
import shutil
import signal

import pytest

from cache.reader import CacheReader
from common import disk
from common.errors import DiskError, UsageError

POINTS = 10
"""Operations that are tried by default."""
SIZES = {"train_rows": 21, "held_out_rows": 6}


def moments(operations, *, offset):
    """The numbers of the operations that are tried; ``offset`` makes them others for another test."""
    step = int(os.environ.get("NESTCODER_CRASH_STEP", operations // POINTS))
    return range(1 + offset % step, operations + 1, step)


class Fault:
    """Does something before or after the operation of this number. ``count`` is how many there have been."""

    def __init__(self, number, when, act):
        self.number, self.when, self.act, self.count = number, when, act, 0

    def __call__(self, when, operation, path):
        self.count += when == "before"
        if self.count == self.number and when == self.when:
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
        written = path.read_bytes()
        kept = written.rstrip(b"\n").rfind(b"\n") + 1 if operation == "append" else 0
        os.truncate(path, (kept + len(written)) // 2)
    kill(operation, path)


@pytest.fixture(scope="module")
def undisturbed(stream, tmp_path_factory):
    """The bytes of a run that nothing disturbed."""
    path = tmp_path_factory.mktemp("undisturbed")
    write(stream, path)
    return stream.tree(path)


@pytest.fixture(params=[False, True], ids=["segments alone", "drafts at every batch"])
def alone(stream, undisturbed, folder, request, monkeypatch):
    """Those bytes, how many operations it takes to write them, and whether every batch is drafted."""
    if request.param:
        monkeypatch.setattr("cache.drafts._SECONDS", 0.0)
        monkeypatch.setattr("cache.drafts._SHARE", float("inf"))
    counter = Fault(0, "", kill)
    write(stream, folder / "alone", counter)
    assert stream.tree(folder / "alone") == undisturbed
    return undisturbed, counter.count, request.param


@pytest.mark.parametrize(("when", "act"), [("before", kill), ("after", kill), ("after", tear)])
def test_a_rerun_after_a_kill_at_any_operation_writes_the_same_bytes(stream, folder, alone, when, act):
    reference, operations, _ = alone
    assert operations > 100
    for number in moments(operations, offset=len(act.__name__ + when)):
        path = folder / str(number)
        assert killed(stream, path, Fault(number, when, act))
        refuses_what_is_unfinished(path)
        write(stream, path)
        assert stream.tree(path) == reference, f"{act.__name__} {when} operation {number}"
        shutil.rmtree(path)


def refuses_what_is_unfinished(path):
    try:
        CacheReader.open(path)
    except UsageError:
        return


def test_kills_during_recovery_change_no_byte(stream, folder, alone):
    reference, operations, _ = alone
    chance = random.Random(0)
    for run in range(60 if "NESTCODER_CRASH_STEP" in os.environ else 3):
        path = folder / str(run)
        while killed(stream, path, Fault(chance.randrange(1, operations), "after", chance.choice((kill, tear)))):
            pass
        assert stream.tree(path) == reference
        shutil.rmtree(path)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_an_error_at_any_operation_is_one_sentence_and_a_rerun_goes_on(stream, folder, alone, number):
    reference, operations, drafts = alone

    def fail(_operation, path):
        raise OSError(number, os.strerror(number), path)

    for operation in moments(operations, offset=number):
        path = folder / str(operation)
        reason = ""
        try:
            write(stream, path, Fault(operation, "before", fail))
        except DiskError as error:
            reason = str(error)
        # What fails of a draft fails nothing else.
        assert os.strerror(number) in reason or (drafts and not reason)
        assert not list(path.rglob("*.aside"))
        write(stream, path)
        assert stream.tree(path) == reference
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
