"""What every metric is: a pure measurement of one batch, a state that merges, and the fields that it adds to a report.

    metric = Metric.create(inputs)
    state = metric.start()
    state = metric.combine(state, metric.measure(batch))    for every batch and process, in any order
    findings = metric.compute(state)

A state is a few named arrays whose shapes do not depend on how many rows were seen. ``measure`` changes nothing, so a
batch that ran out of memory can be measured again in halves; states merge, so processes can share the rows.

A metric that reads no rows (of the decoder alone, say) keeps the empty state and does its work in ``compute``.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from evaluate.metrics.inputs import MetricInputs, Replicates
from transcoder.decode import bags_of
from transcoder.sparse_code import SparseCode

State = dict[str, Tensor]

_ADDED = 1 << 16
"""Numbers at a time, so that widening them to float64 needs no large array of its own."""


@dataclass(frozen=True)
class Replayed:
    """A batch of held-out rows, without special tokens, and what a dictionary computed for them.

    ``row`` is each row's number in the held-out split, ``document`` the number of its document; calculating with them
    is exact. ``prefixes`` are the ends of the prefixes that ``reconstructed`` has.
    """

    source: Float[Tensor, "rows d_source"]
    target: Float[Tensor, "rows d_target"]
    document: Int[Tensor, " rows"]
    row: Int[Tensor, " rows"]
    selection: SparseCode
    reconstructed: Float[Tensor, "rows prefixes d_target"]
    prefixes: tuple[int, ...]

    @cached_property
    def l0(self) -> Int[Tensor, "rows prefixes"]:
        """How many features below each prefix fire in every row."""
        return l0_by_prefix(self.selection, self.prefixes)


@dataclass(frozen=True)
class Findings:
    """``fields`` are written into metrics.json. For ``replicates`` a comparison gives paired intervals."""

    fields: dict[str, Any]
    replicates: Mapping[str, Replicates] = field(default_factory=dict)


class Metric(ABC):
    """Pure: a metric knows its inputs, but keeps nothing of the rows that it has measured."""

    @classmethod
    @abstractmethod
    def create(cls, inputs: MetricInputs) -> "Metric":
        """The metric for one dictionary on one cache."""

    def start(self) -> State:
        """The state before any row."""
        return {}

    def measure(self, batch: Replayed) -> State:  # noqa: ARG002
        """The state of one batch."""
        return {}

    def combine(self, total: State, addition: State) -> State:
        """Both states in one; ``total`` may be changed in place."""
        return add(total, addition)

    @abstractmethod
    def compute(self, state: State) -> Findings:
        """The fields of the report."""


def add(total: State, addition: State) -> State:
    """Add the sums of ``addition`` to ``total``, in place; sums that ``addition`` does not have stay unchanged."""
    for name, array in addition.items():
        blocks = zip(total[name].view(-1).split(_ADDED), array.reshape(-1).split(_ADDED), strict=True)
        for sums, values in blocks:
            sums.add_(values.to(sums.device))
    return total


def l0_by_prefix(selection: SparseCode, prefixes: tuple[int, ...]) -> Int[Tensor, "rows prefixes"]:
    """The number of firing features below each prefix, for every row."""
    firing = torch.zeros(selection.values.numel() + 1, dtype=torch.int64, device=selection.values.device)
    torch.cumsum(selection.values > 0, dim=0, out=firing[1:])
    bounds = bags_of(selection, prefixes).offsets.long()
    return firing[bounds].diff().view(-1, len(prefixes)).cumsum(dim=1)


def mixed(numbers: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """Numbers distributed evenly over 64 bits (the finaliser of splitmix64): the same hash on every machine."""
    with np.errstate(over="ignore"):
        spread = numbers + np.uint64(0x9E3779B97F4A7C15)
        spread = (spread ^ (spread >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        spread = (spread ^ (spread >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return spread ^ (spread >> np.uint64(31))


def numbered(document: Int[Tensor, " rows"]) -> tuple[UInt64[np.ndarray, " documents"], Int[Tensor, " rows"]]:
    """The distinct documents of a batch, and for every row the index of its document among them."""
    documents, document_index = torch.unique(document, return_inverse=True)
    return documents.cpu().numpy().astype(np.uint64), document_index
