"""The held-out rows that lie farthest from the mean: a handful of them can own the variance of a layer.

Rows are ordered by their squared distance from the mean, the largest first, and equal ones by their number, so that any
number of batches or processes keeps the same rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluate.metrics.metric import State

_PREFIX = "largest."


@dataclass(frozen=True)
class LargestRows:
    """The ``count`` rows of largest distance: ``distance``, ``row`` (-1: none yet) and, of each row, named values.

    ``values`` gives the names, shapes and types of what is kept of a row beside its distance and number.
    """

    count: int
    values: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    device: str | torch.device = "cpu"

    def start(self) -> State:
        """No rows."""
        layout = {"distance": ((), torch.float64), "row": ((), torch.int64)} | dict(self.values)
        state = {
            _PREFIX + name: torch.zeros(self.count, *shape, dtype=dtype, device=self.device)
            for name, (shape, dtype) in layout.items()
        }
        state[_PREFIX + "distance"].fill_(-1.0)
        state[_PREFIX + "row"].fill_(-1)
        return state

    def of_batch(self, distance: Float[Tensor, " rows"], row: Int[Tensor, " rows"], **values: Tensor) -> State:
        """The largest rows of a batch."""
        order = _largest_first(distance, row)[: self.count]
        columns = {"distance": distance, "row": row} | values
        return {_PREFIX + name: column[order] for name, column in columns.items()}

    def combine(self, total: State, addition: State) -> State:
        """The largest rows of both, written into ``total``."""
        smallest = total[_PREFIX + "distance"][-1]
        distance = addition[_PREFIX + "distance"].to(smallest.device)
        larger = ((distance >= smallest) & (distance >= 0)).nonzero()[:, 0]
        if not len(larger):
            return total
        names = ("distance", "row", *self.values)
        joined = {
            name: torch.cat([total[_PREFIX + name], addition[_PREFIX + name].to(smallest.device)[larger]])
            for name in names
        }
        order = _largest_first(joined["distance"], joined["row"])[: self.count]
        for name in names:
            total[_PREFIX + name].copy_(joined[name][order])
        return total

    def finish(self, state: State) -> State:
        """The rows that there are, by plain names; fewer than ``count`` where fewer were seen."""
        found = state[_PREFIX + "row"] >= 0
        return {name: state[_PREFIX + name][found] for name in ("distance", "row", *self.values)}


def _largest_first(distance: Float[Tensor, " rows"], row: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """By distance, equal ones by number."""
    by_number = row.sort(stable=True).indices
    return by_number[distance[by_number].sort(descending=True, stable=True).indices]
