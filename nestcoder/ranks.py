"""Which of several cooperating processes this one is, as torchrun says it; one process alone is rank 0 of 1."""

import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from common.errors import UsageError


@dataclass(frozen=True)
class Ranks:
    """This process's number, how many there are, and its number on its own machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    def device(self, asked: str) -> str:
        """``asked``, or this process's own card when several share a machine and none is named."""
        if self.world == 1 or asked not in {"auto", "cuda"}:
            return asked
        if asked == "auto":
            import torch

            if not torch.cuda.is_available():
                return asked
        return f"cuda:{self.local}"


def read_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The ranks torchrun set, or one process alone. Raises UsageError when they contradict each other."""
    try:
        ranks = Ranks(*(int(environment.get(key, usual)) for key, usual in _KEYS))
    except ValueError:
        raise UsageError("RANK, WORLD_SIZE and LOCAL_RANK must be numbers.", remedy="Start with torchrun.") from None
    if not 0 <= ranks.rank < ranks.world:
        raise UsageError(f"RANK {ranks.rank} is not one of {ranks.world}.", remedy="Start with torchrun.")
    return ranks


_KEYS = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


@contextmanager
def process_group(ranks: Ranks, device: str) -> Generator[None]:
    """torch.distributed while the block runs, when there are several processes; nothing otherwise."""
    if ranks.world == 1:
        yield
        return
    import torch
    import torch.distributed as distributed

    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        distributed.init_process_group("nccl", device_id=torch.device("cuda", torch.cuda.current_device()))
    else:
        distributed.init_process_group("gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()
