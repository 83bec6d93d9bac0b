"""Settings of every test, and processes that meet."""

import os

# Before torch is imported anywhere, and inherited by the processes that tests start. Several workers share the cores:
# threads of their own only wait for one another, at twice the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import fcntl
import gc
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# A deadline would make a busy machine fail tests that are right.
settings.register_profile("nestcoder", deadline=None)
settings.load_profile("nestcoder")

STARTING_PROCESSES = ("bench/", "test_pipeline", "test_wheel", "test_distributed", "test_kernels", "test_sharded")
"""Files of few, long tests. They go first, so that no worker is left alone with one at the end."""

WARM = Path(__file__).with_name("warm")
SECONDS = 200
"""After this time a process that waits for another is stopped."""


# A million objects of libraries and tests come and stay: looking through them again and again takes seconds.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(name in item.nodeid for name in STARTING_PROCESSES))


@pytest.fixture(scope="session")
def warm_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An executable that is Python, and starts in no time: warm/server.py has loaded the libraries for its processes.

    The workers of a session share it. A signal to such a process is none to the one that works; only its end is.
    """
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):  # no Linux, or an old one
        yield sys.executable
        return
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with (shared / "warm-python").open("a+") as found:
        fcntl.flock(found, fcntl.LOCK_EX)
        found.seek(0)
        folder = found.read()
        connection = _staying(folder) if folder else None
        if not connection:
            folder = tempfile.mkdtemp(prefix="warm-")  # its path is short, as the address of a socket must be
            found.truncate(0)
            found.write(folder)
            found.flush()
            environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            subprocess.run([sys.executable, "-P", WARM / "server.py", folder], check=True, env=environment)
            connection = _staying(folder)
            assert connection, "the warm Python did not start"
        fcntl.flock(found, fcntl.LOCK_UN)
        with connection:
            yield f"{folder}/python"


def _staying(folder: str) -> socket.socket | None:
    """A connection that keeps the server in ``folder`` alive, None where it has ended."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"{folder}/socket")
        connection.sendall(b"stay")
        if connection.recv(4):
            return connection
    except (ConnectionError, FileNotFoundError):
        pass
    connection.close()
    return None


InProcesses = Callable[[int, Callable[[], object]], list[int]]


@pytest.fixture(scope="session")
def in_processes(tmp_path_factory: pytest.TempPathFactory) -> InProcesses:
    """``in_processes(world, work)`` does ``work()`` in so many processes that gloo joins, and returns their exit codes.

    They are forks of this one, which has imported everything: starting Python and PyTorch anew takes seconds each. What
    one raises is shown, and is exit code 1.
    """

    def run(world: int, work: Callable[[], object]) -> list[int]:
        meeting = tmp_path_factory.mktemp("meeting") / "point"
        children = [_forked(world, rank, work, meeting) for rank in range(world)]
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

    return run


def _forked(world: int, rank: int, work: Callable[[], object], meeting: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        from torch import distributed, set_num_threads

        signal.alarm(SECONDS)
        set_num_threads(1)
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
