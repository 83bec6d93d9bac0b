"""Settings of every test, and processes that meet."""

import os

# Before torch is imported anywhere, and inherited by the processes that tests start. Several workers share the cores:
# threads of their own only wait for one another, at twice the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# A deadline would make a busy machine fail tests that are right.
settings.register_profile("nestcoder", deadline=None)
settings.load_profile("nestcoder")

STARTING_PROCESSES = ("bench/", "test_pipeline", "test_wheel", "test_distributed", "test_kernels", "test_sharded")
"""Files of few, long tests. They go first, so that no worker is left alone with one at the end."""

SECONDS = 200
"""After this time a process that waits for another is stopped."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(name in item.nodeid for name in STARTING_PROCESSES))


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
