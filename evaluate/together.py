"""What several processes that evaluate one dictionary exchange, and what they do when one of them is gone.

Every exchange waits for all processes. One that fails says why and leaves, which closes its connections: with gloo the
exchange that another is in, or comes to, then ends with a stated problem there too. With NCCL it is torchrun that ends
the others.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import reduce

import torch
from torch import distributed

from common.errors import DiskError
from evaluate.metrics.metric import State
from train.arrays.ranks import Ranks


def merged(combine: Callable[[State, State], State], state: State, ranks: Ranks) -> State:
    """Every process's state in one, the same on all: each one's is sent to the others in turn."""
    if ranks.world == 1:
        return state
    return reduce(combine, (_sent_by(rank, state, ranks) for rank in range(ranks.world)))


def _sent_by(rank: int, state: State, ranks: Ranks) -> State:
    """The state of process ``rank``, sent to the others."""
    sent = {name: array.clone() for name, array in state.items()}
    with exchanging(ranks):
        for array in sent.values():
            distributed.broadcast(array, src=rank)
    return sent


def least(number: int, *, device: str, ranks: Ranks) -> int:
    """The smallest of the processes' numbers."""
    if ranks.world == 1:
        return number
    numbers = torch.tensor([number], device=device)
    with exchanging(ranks):
        distributed.all_reduce(numbers, op=distributed.ReduceOp.MIN)
    return int(numbers)


def wait(ranks: Ranks) -> None:
    """Until every process is here."""
    with exchanging(ranks):
        ranks.wait()


@contextmanager
def exchanging(ranks: Ranks) -> Generator[None]:
    """Raises DiskError where another process does not answer any more."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise DiskError(
            "Another process of this evaluation has stopped.",
            where=f"process {ranks.rank} of {ranks.world} was waiting for it",
            remedy="What that process said last is the reason. No report was written; evaluate again.",
        ) from error
