"""Several processes that do one task: the number of this process, and everything that they exchange.

torchrun starts them and sets RANK, WORLD_SIZE and LOCAL_RANK; ``process_group`` connects them while a stage runs. Every
exchange waits for all processes, so all must make the same exchanges in the same order. A single process is rank 0 of
1, and every exchange returns its own value.

A process that fails prints its error and leaves, which closes its connections: with gloo the next exchange of the
others then ends with an error too. With NCCL torchrun ends the others.
"""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, distributed

from common.errors import DiskError, UsageError


@dataclass(frozen=True)
class Ranks:
    """This process's number, how many there are, and its number on its own machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @staticmethod
    def current() -> "Ranks":
        """The ranks of torch.distributed; a single process if it was not set up."""
        if distributed.is_available() and distributed.is_initialized():
            return Ranks(distributed.get_rank(), distributed.get_world_size())
        return ALONE

    def device(self, name: str) -> str:
        """``name``, or this process's own card when several share a machine and none is named."""
        if self.world == 1 or name not in {"auto", "cuda"}:
            return name
        if name == "auto" and not torch.cuda.is_available():
            return name
        return f"cuda:{self.local}"

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self.world > 1:
            with self._exchanging():
                distributed.barrier()

    def sum_(self, array: Tensor) -> Tensor:
        """Replace an array, in place, by its sum over processes."""
        return self._reduced_(array, distributed.ReduceOp.SUM)

    def sum_all_(self, arrays: Sequence[Tensor]) -> None:
        """Replace each array by its sum over processes: one exchange for all arrays of a dtype."""
        if self.world == 1:
            return
        for dtype in dict.fromkeys(array.dtype for array in arrays):
            same = [array for array in arrays if array.dtype == dtype]
            flat = self.sum_(torch.cat([array.reshape(-1) for array in same]))
            for array, summed in zip(same, flat.split([array.numel() for array in same]), strict=True):
                array.copy_(summed.view(array.shape))

    def min_(self, array: Tensor) -> Tensor:
        """Replace every number of an array, in place, by the smallest of all processes."""
        return self._reduced_(array, distributed.ReduceOp.MIN)

    def total(self, number: int, device: torch.device | str) -> int:
        """The sum of the processes' numbers."""
        return self._number(number, device, distributed.ReduceOp.SUM)

    def smallest(self, number: int, device: torch.device | str) -> int:
        """The smallest of the processes' numbers."""
        return self._number(number, device, distributed.ReduceOp.MIN)

    def largest(self, number: int, device: torch.device | str) -> int:
        """The largest of the processes' numbers."""
        return self._number(number, device, distributed.ReduceOp.MAX)

    def any_of(self, flags: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Each flag is true if it is true in any process."""
        return flags if self.world == 1 else self._reduced_(flags.int(), distributed.ReduceOp.MAX).bool()

    def gathered(self, array: Tensor) -> Shaped[Tensor, "world ..."]:
        """Every process's array, in the order of the ranks. All have the same shape and dtype."""
        if self.world == 1:
            return array[None]
        arrays = array.new_empty(self.world, *array.shape)
        with self._exchanging():
            distributed.all_gather(list(arrays.unbind()), array)
        return arrays

    def merged(
        self, state: Mapping[str, Tensor], combine: Callable[[dict[str, Tensor], dict[str, Tensor]], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The named arrays of all processes, combined in pairs; the result is the same in every process."""
        if self.world == 1:
            return dict(state)
        return reduce(combine, (self._broadcast(state, source=rank) for rank in range(self.world)))

    def _broadcast(self, state: Mapping[str, Tensor], *, source: int) -> dict[str, Tensor]:
        received = {name: array.clone() for name, array in state.items()}
        with self._exchanging():
            for array in received.values():
                distributed.broadcast(array, src=source)
        return received

    def _number(self, number: int, device: torch.device | str, op: distributed.ReduceOp.RedOpType) -> int:
        return number if self.world == 1 else int(self._reduced_(torch.tensor(number, device=device), op))

    def _reduced_(self, array: Tensor, op: distributed.ReduceOp.RedOpType) -> Tensor:
        if self.world > 1:
            with self._exchanging():
                distributed.all_reduce(array, op=op)
        return array

    @contextmanager
    def _exchanging(self) -> Generator[None]:
        """Raises DiskError when another process does not answer any more."""
        try:
            yield
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # this process's own, noticed here
            raise
        except RuntimeError as error:
            raise DiskError(
                "Another process of this run has stopped.",
                where=f"process {self.rank} of {self.world} was waiting for it",
                remedy="The last message of that process says why. Run the same command again.",
            ) from error


ALONE = Ranks()


def read_ranks(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The ranks that torchrun set, or a single process. Raises UsageError when they contradict each other."""
    try:
        ranks = Ranks(*(int(environment.get(key, usual)) for key, usual in _KEYS))
    except ValueError:
        raise UsageError("RANK, WORLD_SIZE and LOCAL_RANK must be numbers.", remedy="Start with torchrun.") from None
    if not 0 <= ranks.rank < ranks.world:
        raise UsageError(f"RANK {ranks.rank} is not below WORLD_SIZE {ranks.world}.", remedy="Start with torchrun.")
    return ranks


_KEYS = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


@contextmanager
def process_group(ranks: Ranks, device: str) -> Generator[None]:
    """Connect the processes with torch.distributed while the block runs; a single process needs nothing."""
    if ranks.world == 1:
        yield
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
        distributed.init_process_group("nccl", device_id=torch.device("cuda", torch.cuda.current_device()))
    else:
        distributed.init_process_group("gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()
