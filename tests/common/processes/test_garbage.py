"""Garbage is not looked for while libraries are imported, nor when a process ends."""

import gc
import subprocess
import sys

import pytest

from common.processes.garbage import no_collections

SCRIPT = """
import gc, weakref
from common.processes.garbage import leave_garbage

class Node:
    def __del__(self):
        print("collected")

def forget():
    node = Node()
    node.itself = node

gc.disable()
forget()
{last}
"""


def test_it_is_as_before_after_the_block() -> None:
    assert gc.isenabled()
    with no_collections():
        assert not gc.isenabled()
        with no_collections():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="planted"), no_collections():
        raise ValueError("planted")
    assert gc.isenabled()


@pytest.mark.parametrize(("last", "printed"), [("pass", "collected\n"), ("leave_garbage()", "")])
def test_a_process_leaves_its_garbage(last: str, printed: str) -> None:
    command = [sys.executable, "-c", SCRIPT.format(last=last)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == printed
