"""Settings of every test."""

import os

# Before torch is imported anywhere, and inherited by the processes that tests start. Several workers share the cores:
# threads of their own only wait for one another, at twice the processor time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# A deadline would make a busy machine fail tests that are right.
settings.register_profile("nestcoder", deadline=None)
settings.load_profile("nestcoder")

STARTING_PROCESSES = ("bench/", "test_pipeline", "test_wheel", "test_distributed", "test_kernels", "test_sharded")
"""Files of few, long tests. They go first, so that no worker is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(name in item.nodeid for name in STARTING_PROCESSES))
