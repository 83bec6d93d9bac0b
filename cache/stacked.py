"""Caches of several layers as one: its row r has the sources of row r of all of them, concatenated, and the targets.

One harvest of many layers writes the same tokens in the same order to all of them, so nothing has to be matched. This
is checked before any row is read, with the checksums of tokens, documents and positions in the journals.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from numpy import ndarray
from torch import Tensor

from cache.format.statistics import GroupStatistics
from cache.reader import CacheReader, SplitView, View
from cache.storage.buffers import Buffers
from cache.storage.columns import Column
from common.errors import MismatchError
from common.hashing import canonical_json, hash_bytes

_SAME = ("tokens", "document", "position")


class Stacked(SplitView):
    """The rows of a split of several caches, concatenated. Tokens, documents and positions are those of the first."""

    def __init__(self, splits: Sequence[SplitView]) -> None:
        super().__init__(splits[0].reader, splits[0].group, splits[0].columns)
        self._splits = tuple(splits)

    @property
    def d_source(self) -> int:
        """The sum of the sources' widths."""
        return sum(split.d_source for split in self._splits)

    @property
    def d_target(self) -> int:
        """The sum of the targets' widths."""
        return sum(split.d_target for split in self._splits)

    @property
    def read_columns(self) -> list[Column]:
        """The columns of all caches."""
        return [column for split in self._splits for column in split.read_columns]

    def activations(
        self,
        index: Int64[ndarray, " rows"],
        *,
        view: View | None = None,
        buffers: Buffers | None = None,  # noqa: ARG002
    ) -> tuple[Float[Tensor, "rows d_source"], Float[Tensor, "rows d_target"]]:
        """The sources of all caches, concatenated in their order, and the targets."""
        found = [split.activations(index, view=view) for split in self._splits]
        return torch.cat([source for source, _ in found], dim=1), torch.cat([target for _, target in found], dim=1)

    @cached_property
    def statistics(self) -> GroupStatistics:
        """Not defined for several layers at once."""
        raise NotImplementedError("each layer has statistics of its own")


def stacked(readers: Sequence[CacheReader]) -> CacheReader:
    """The caches as one. Raises MismatchError that names the first cache whose rows are other tokens."""
    first = readers[0]
    for reader in readers[1:]:
        _check_aligned(first, reader)
    splits: dict[str, SplitView] = {name: Stacked([reader.splits[name] for reader in readers]) for name in first.splits}
    identity = {key: value for key, value in first.identity.items() if key not in ("layer", "proof")}
    layers = [reader.identity.get("layer") for reader in readers]
    combined = first.with_splits(splits, identity=identity | {"layers": layers})
    combined.fingerprint = hash_bytes(canonical_json([reader.fingerprint for reader in readers]))
    return combined


def _check_aligned(first: CacheReader, second: CacheReader) -> None:
    """Row r of both must be the same token of the same text."""
    remedy = "Harvest the layers in one command: it writes the same rows, in the same order, to all of them."
    for name, split in first.splits.items():
        second_split = second.splits[name]
        for key in ("rows", "chunk_rows", "segment_rows"):
            expected = getattr(split.group, key)
            found = getattr(second_split.group, key)
            if found != expected:
                what = f"The caches are not aligned: {key} of {name} is {found}, not {expected} as in {first.path}."
                raise MismatchError(what, where=second.path, remedy=remedy)
        for column in _SAME:
            if split.columns[column].checksums != second_split.columns[column].checksums:
                what = f"The caches are not aligned: the {name} rows differ in {column} from those of {first.path}."
                raise MismatchError(what, where=second.path, remedy=remedy)
