"""This process's share of a batch, where several processes read different rows of it (data parallel).

Sums over processes of gradients weighted by each one's share of the rows are the gradient of the whole batch, and
batchtopk selects over all rows of it. So N processes do the same as one, up to rounding.
"""

from dataclasses import dataclass

import torch

from common.distributed import ALONE, Ranks


@dataclass(frozen=True)
class BatchShare:
    """This process's ``rows`` of a batch that has ``batch_rows`` rows over all processes; either may be 0."""

    rows: int
    batch_rows: int
    ranks: Ranks = ALONE

    @staticmethod
    def from_rows(rows: int, ranks: Ranks, device: torch.device) -> "BatchShare":
        """Every process takes part, those without rows too."""
        return BatchShare(rows, ranks.total(rows, device), ranks)

    @property
    def fraction(self) -> float:
        """The weight of this process's mean in the mean of the batch."""
        return self.rows / max(1, self.batch_rows)

    def rows_before(self, device: torch.device) -> int:
        """How many rows of the batch the processes before this one have."""
        if self.ranks.world == 1:
            return 0
        counts = self.ranks.gathered(torch.tensor(self.rows, device=device))
        return int(counts[: self.ranks.rank].sum())
