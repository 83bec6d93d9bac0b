"""What every metric is: a pure measurement of one batch, and a state that merges.

    state = metric.start()
    state = combine(state, metric.measure(batch))    for every batch, shard and rank, in any order
    result = metric.compute(state)

A state is a few named arrays of a size that does not depend on the number of rows. Because ``measure`` changes nothing,
a batch that ran out of memory can be measured again in halves, and because states merge, ranks can share the rows.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from transcoder.sparse_code import SparseCode

State = dict[str, Tensor]

_ADDED = 1 << 16
"""Numbers at a time, so that widening them to float64 needs no large array of its own."""


@dataclass(frozen=True)
class Replayed:
    """A batch of held-out rows and what a dictionary made of them. Rows of special tokens are already left out.

    ``row`` is each row's number in the held-out split, ``document`` its document's; arithmetic on them is exact.
    """

    source: Float[Tensor, "rows d_source"]
    target: Float[Tensor, "rows d_target"]
    document: Int[Tensor, " rows"]
    row: Int[Tensor, " rows"]
    selection: SparseCode
    reconstructed: Float[Tensor, "rows prefixes d_target"]


@runtime_checkable
class Metric(Protocol):
    """Pure: a metric holds what it was told at the start and nothing that it has seen."""

    def start(self) -> State: ...

    def measure(self, batch: Replayed) -> State: ...

    def combine(self, total: State, part: State) -> State: ...

    def compute(self, state: State) -> dict[str, Any]: ...


def add(total: State, part: State) -> State:
    """Sums merge by adding; ``total`` is changed in place, and what ``part`` lacks is left as it is."""
    for name, array in part.items():
        pieces = (side.view(-1).split(_ADDED) for side in (total[name], array.to(total[name].device)))
        for sums, some in zip(*pieces, strict=True):
            sums.add_(some)
    return total


def mixed(numbers: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """Numbers scattered evenly over 64 bits (the finaliser of splitmix64): a hash that is the same everywhere."""
    with np.errstate(over="ignore"):
        spread = numbers + np.uint64(0x9E3779B97F4A7C15)
        spread = (spread ^ (spread >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        spread = (spread ^ (spread >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return spread ^ (spread >> np.uint64(31))


def numbered(document: Int[Tensor, " rows"]) -> tuple[UInt64[np.ndarray, " documents"], Int[Tensor, " rows"]]:
    """The distinct documents of a batch, and for every row the place of its own among them."""
    documents, place = torch.unique(document, return_inverse=True)
    return documents.cpu().numpy().astype(np.uint64), place
