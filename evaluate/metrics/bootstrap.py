"""Intervals: a Poisson bootstrap over documents.

Replicate b gives document d the weight w(b, d) ~ Poisson(1), a pure function of (seed, b, d), and keeps the sums of the
estimate, weighted by it. Row 0 of every sum has weights 1 and is the estimate. Two dictionaries that are evaluated
on the same rows share their weights, so differences of their replicates are a paired bootstrap.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, factorial

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
from torch import Tensor

from evaluate.metrics.metric import State, mixed

_POISSON = np.cumsum([exp(-1) / factorial(count) for count in range(12)])
"""P(X <= count) of Poisson(1); above 11 lies less than 1e-9."""

_WAITING_DOCUMENTS = 64
"""Documents whose sums wait before they are weighted. Weighting touches every replicate of every sum (92 MB for the
errors by dimension of Gemma-2-2B), so doing it for many documents at once is what keeps a replay fast."""

_DOCUMENT = "document"


def waiting(name: str) -> str:
    """Under what name the sums of documents wait that are not weighted yet."""
    return f"{name}.waiting"


@dataclass(frozen=True)
class DocumentSums:
    """Named sums over rows, of the shapes ``widths``, for the estimate and for every replicate; all in float64.

    ``finish`` gives them as (1 + replicates, *width).
    """

    widths: Mapping[str, tuple[int, ...]]
    replicates: int
    seed: int
    device: str | torch.device = "cpu"

    def start(self) -> State:
        """Sums of nothing. Shapes never change, so that processes can exchange states."""
        state = {waiting(_DOCUMENT): torch.full((_WAITING_DOCUMENTS,), -1, dtype=torch.int64, device=self.device)}
        for name, width in self.widths.items():
            for key, count in ((name, 1 + self.replicates), (waiting(name), _WAITING_DOCUMENTS)):
                state[key] = torch.zeros(count, *width, dtype=torch.float64, device=self.device)
        return state

    def of_batch(self, documents: UInt64[np.ndarray, " documents"], sums: State) -> State:
        """The state of a batch, from the sums of each of its ``documents``."""
        numbers = torch.from_numpy(documents.astype(np.int64)).to(self.device)
        return {waiting(_DOCUMENT): numbers} | {waiting(name): sums[name].double() for name in self.widths}

    def combine(self, total: State, addition: State) -> State:
        """Add to ``total`` in place: a batch's state, or that of another process."""
        for name in self.widths:
            if name in addition:
                total[name].add_(addition[name].to(total[name].device))
        documents = addition[waiting(_DOCUMENT)]
        present = (documents >= 0).nonzero()[:, 0]
        free = int((total[waiting(_DOCUMENT)] < 0).sum())
        while len(present):
            if not free:
                self._weigh_(total)
                free = _WAITING_DOCUMENTS
            taken = present[:free]
            present = present[free:]
            first = _WAITING_DOCUMENTS - free
            for name in (_DOCUMENT, *self.widths):
                source = addition[waiting(name)][taken]
                total[waiting(name)][first : first + len(taken)] = source.to(total[waiting(name)].device)
            free -= len(taken)
        return total

    def finish(self, state: State) -> State:
        """Every sum as (1 + replicates, *width), with those of the documents that still wait."""
        finished = {name: array.clone() if name in self.widths else array for name, array in state.items()}
        self._add_weighted_(finished)
        return {name: finished[name] for name in self.widths}

    def _weigh_(self, state: State) -> None:
        """Weigh what waits, and let nothing wait any more."""
        self._add_weighted_(state)
        state[waiting(_DOCUMENT)].fill_(-1)

    def _add_weighted_(self, state: State) -> None:
        documents = state[waiting(_DOCUMENT)]
        count = int((documents >= 0).sum())
        if not count:
            return
        numbers = documents[:count].cpu().numpy().astype(np.uint64)
        weights = bootstrap_weights(numbers, replicates=self.replicates, seed=self.seed).to(documents.device)
        for name in self.widths:
            flat = state[waiting(name)][:count].reshape(count, -1)
            state[name].view(len(weights), -1).addmm_(weights, flat)


def sums_by_document(
    values: Mapping[str, Float[Tensor, "rows ..."] | Int[Tensor, "rows ..."]],
    document_index: Int[Tensor, " rows"],
    *,
    documents: int,
) -> State:
    """Values of rows, numbers or vectors, summed within each document in float64.

    ``document_index`` is the number of each row's document among those of the batch.
    """
    if document_index.is_cuda:
        # There index_add_ adds in whatever order its threads run, and a rerun would differ in the last digit.
        order = document_index.sort(stable=True).indices
        lengths = document_index.bincount(minlength=documents)
        return {
            name: torch.segment_reduce(array.double()[order], "sum", lengths=lengths, axis=0)
            for name, array in values.items()
        }
    sums: State = {}
    for name, array in values.items():
        sums[name] = torch.zeros(documents, *array.shape[1:], dtype=torch.float64)
        sums[name].index_add_(0, document_index, array.double())
    return sums


def bootstrap_weights(
    documents: UInt64[np.ndarray, " documents"], *, replicates: int, seed: int
) -> Float[Tensor, "replicates_plus_one documents"]:
    """Row 0 is 1; below it, Poisson(1) counts that depend on nothing but (seed, replicate, document)."""
    streams = mixed(np.arange(replicates, dtype=np.uint64) + np.uint64(seed << 32))
    # 53 bits are a float64 between 0 and 1, without rounding up to 1.
    uniform = (mixed(streams[:, None] ^ mixed(documents)[None]) >> np.uint64(11)) * 2.0**-53
    counts = np.searchsorted(_POISSON, uniform, side="right").astype(np.float64)
    return torch.from_numpy(np.concatenate([np.ones((1, len(documents))), counts]))


def intervals(replicates: Float[np.ndarray, "replicates columns"]) -> list[list[float]] | None:
    """The central 95 % of every column. None without replicates, and where more than one resampling in a hundred draws
    no document that counts (as with fewer than five documents)."""
    drawn = replicates[np.isfinite(replicates).all(axis=1)]
    if len(drawn) < 0.99 * len(replicates) or not len(drawn):
        return None
    return [[float(low), float(high)] for low, high in np.percentile(drawn, [2.5, 97.5], axis=0).T]
