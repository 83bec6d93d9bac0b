"""Held-out text as a language model reads it: the contexts of the harvest, made again from the cache's tokens."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice, pairwise

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cache.reader import CacheReader


@dataclass(frozen=True)
class Contexts:
    """Some contexts of one length: tokens, their documents, and the position each has for the model."""

    tokens: Int[Tensor, "batch pos"]
    document: Int[Tensor, "batch pos"]
    positions: Int[Tensor, "batch pos"]

    def dealt(self, rank: int, world: int) -> "Contexts":
        """The contexts of one of several processes."""
        return Contexts(self.tokens[rank::world], self.document[rank::world], self.positions[rank::world])


def held_out_contexts(reader: CacheReader, *, tokens: int, batch_tokens: int, device: str) -> list[Contexts]:
    """The held-out text in the contexts of the harvest, until there are ``tokens`` of them. Neighbours of one length
    share a batch of at most ``batch_tokens``, or a single context."""
    view = reader.split("held_out")
    starts = np.flatnonzero(view.position == 0)
    bounds = [*starts[starts < min(tokens, len(view))].tolist(), len(view)]
    bounds[-1] = int(next((start for start in starts if start >= tokens), len(view)))
    per_document = reader.identity.get("attention") == "document"
    batches: list[Contexts] = []
    for length, same in groupby(pairwise(bounds), key=lambda bound: bound[1] - bound[0]):
        for bounds in _batched(same, max(1, batch_tokens // length)):
            rows = np.concatenate([np.arange(*bound) for bound in bounds]).reshape(len(bounds), length)
            positions = positions_in(view.document[rows], per_document=per_document)
            arrays = (np.array(array, np.int64) for array in (view.tokens[rows], view.document[rows], positions))
            batches.append(Contexts(*(torch.from_numpy(array).to(device) for array in arrays)))
    return batches


def _batched(bounds: Iterable[tuple[int, int]], count: int) -> Iterator[list[tuple[int, int]]]:
    remaining = iter(bounds)
    while batch := list(islice(remaining, count)):
        yield batch


def positions_in(document: Int[np.ndarray, "batch pos"], *, per_document: bool) -> Int[np.ndarray, "batch pos"]:
    """The position in the context; where attention stays inside a document, the position after its beginning."""
    positions = np.broadcast_to(np.arange(document.shape[1]), document.shape)
    if not per_document:
        return positions
    begins = np.diff(document, axis=1, prepend=-1) != 0
    return positions - np.maximum.accumulate(np.where(begins, positions, 0), axis=1)
