"""Several processes that take one step together (data parallel), through torch.distributed where it is set up.

Each reads its own rows of a batch. Sums over processes of gradients weighted by each one's share of the rows are the
gradient of the whole batch, and batchtopk selects over all rows of it, so N processes and one process do the same to
rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, distributed


@dataclass(frozen=True)
class Ranks:
    """This process's number and how many there are; one alone talks to nobody."""

    rank: int = 0
    world: int = 1

    @staticmethod
    def current() -> "Ranks":
        """As torch.distributed was set up, if it was."""
        if distributed.is_available() and distributed.is_initialized():
            return Ranks(distributed.get_rank(), distributed.get_world_size())
        return Ranks()

    def part_of(self, rows: int, device: torch.device) -> "Part":
        """This process's rows as its part of a batch. Every process takes part, those without rows too."""
        whole = int(self._reduced(torch.tensor(rows, device=device))) if self.world > 1 else rows
        return Part(rows, whole, self)

    def sum_(self, arrays: Sequence[Tensor]) -> None:
        """Replace each array by its sum over processes: one exchange for all arrays of a dtype."""
        if self.world == 1:
            return
        for dtype in dict.fromkeys(array.dtype for array in arrays):
            mine = [array for array in arrays if array.dtype == dtype]
            flat = torch.cat([array.reshape(-1) for array in mine])
            distributed.all_reduce(flat)
            for array, summed in zip(mine, flat.split([array.numel() for array in mine]), strict=True):
                array.copy_(summed.view(array.shape))

    def rows_before(self, rows: int, device: torch.device) -> int:
        """How many rows of a batch the processes before this one have; ``rows`` are its own."""
        if self.world == 1:
            return 0
        counts = torch.zeros(self.world, dtype=torch.int64, device=device)
        counts[self.rank] = rows
        return int(self._reduced(counts)[: self.rank].sum())

    def agree(self, number: int, device: torch.device) -> int:
        """The largest of the processes' numbers."""
        if self.world == 1:
            return number
        return int(self._reduced(torch.tensor(number, device=device), op=distributed.ReduceOp.MAX))

    def any_of(self, flags: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Where any process has the flag."""
        if self.world == 1:
            return flags
        return self._reduced(flags.int(), op=distributed.ReduceOp.MAX).bool()

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            distributed.barrier()

    def _reduced(self, array: Tensor, op: distributed.ReduceOp.RedOpType = distributed.ReduceOp.SUM) -> Tensor:
        distributed.all_reduce(array, op=op)
        return array


ALONE = Ranks()


@dataclass(frozen=True)
class Part:
    """This process's ``rows`` of a batch that has ``whole`` rows over all processes; either may be 0."""

    rows: int
    whole: int
    ranks: Ranks = ALONE

    @property
    def share(self) -> float:
        """What this process's mean counts in the batch's."""
        return self.rows / max(1, self.whole)
