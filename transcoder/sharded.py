"""A dictionary dealt over processes, for one too large for a card: process r of n owns features r, r + n, r + 2 n, ...

Interleaved, every process owns the same share of every prefix, and so of the work. All see the whole batch:

    1. each picks its own ``top_k`` candidates a row; one all-gather of their values tells all which of them win
    2. each decodes its winners into (row, group) sums; one all-reduce adds them up
    3. errors, slopes and the gradients of the features that it owns are local; those of b_dec and the skip come out
       the same everywhere

The candidates are exact, not a capacity: the sharded step is the single process's step to rounding.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, distributed

from common.errors import UsageError
from transcoder.sparse_code import Selection
from transcoder.weights import Weights
from transcoder.winners import keep_winners, winners


@dataclass(frozen=True)
class Shard:
    """This process's share of a dictionary. One process alone owns all of it and talks to nobody."""

    rank: int = 0
    world: int = 1

    @staticmethod
    def current() -> "Shard":
        """As torch.distributed was set up."""
        return Shard(distributed.get_rank(), distributed.get_world_size())

    def check(self, *, dict_size: int, top_k: int) -> None:
        """Raises UsageError where a process would own fewer features than a row may use."""
        if top_k > dict_size // self.world:
            raise UsageError(
                f"top_k {top_k} exceeds the {dict_size // self.world} features of each of {self.world} processes",
                remedy="Use fewer processes, or leave shard_dictionary off.",
            )

    def owned(self, features: int) -> int:
        """How many of the first ``features`` features are this process's."""
        return max(0, math.ceil((features - self.rank) / self.world))

    def prefixes(self, prefixes: Iterable[int]) -> tuple[int, ...]:
        """The prefixes' ends among this process's features."""
        return tuple(self.owned(prefix) for prefix in prefixes)

    def own(self, rows: Tensor) -> Tensor:
        """This process's own copy of its features' rows of an array of one row a feature."""
        return rows if self.world == 1 else rows[self.rank :: self.world].clone()

    def take(self, weights: Weights) -> Weights:
        """This process's features of a whole dictionary."""
        return Weights(
            W_enc=self.own(weights.W_enc.T).T,
            b_enc=self.own(weights.b_enc),
            W_dec=self.own(weights.W_dec),
            b_dec=weights.b_dec,
            W_skip=weights.W_skip,
        )

    def whole(self, weights: Weights, *, dict_size: int) -> Weights:
        """The whole dictionary put together again, array by array, in the main memory of every process."""
        if self.world == 1:
            return weights
        return Weights(
            W_enc=self.interleave(weights.W_enc.T, dict_size).cpu().T,
            b_enc=self.interleave(weights.b_enc, dict_size).cpu(),
            W_dec=self.interleave(weights.W_dec, dict_size).cpu(),
            b_dec=weights.b_dec.cpu(),
            W_skip=None if weights.W_skip is None else weights.W_skip.cpu(),
        )

    def interleave(self, rows: Tensor, dict_size: int) -> Tensor:
        """One row a feature of the whole dictionary, from every process's rows."""
        if self.world == 1:
            return rows
        longest = math.ceil(dict_size / self.world)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = rows.new_empty(self.world, longest, *rows.shape[1:])
        distributed.all_gather(list(parts.unbind()), padded)
        return parts.transpose(0, 1).flatten(0, 1)[:dict_size].contiguous()

    def sum_(self, array: Tensor) -> Tensor:
        """Add up every process's array in place."""
        if self.world > 1:
            distributed.all_reduce(array)
        return array

    def count(self, own: int, device: torch.device) -> int:
        """The sum of every process's number."""
        return own if self.world == 1 else int(self.sum_(torch.tensor(own, device=device)))

    def mean(self, own: Float[Tensor, ""], features: int) -> Float[Tensor, ""]:
        """The whole dictionary's mean of what has a mean of ``own`` over this process's ``features``."""
        return own if self.world == 1 else self.sum_(own * features) / self.count(features, own.device)

    def winners(self, values: Float[Tensor, "rows candidates"], count: int) -> Bool[Tensor, "rows candidates"]:
        """Which of this process's candidates are among the ``count`` largest of a row over all features."""
        return winners(values, count, rank=self.rank, world=self.world)

    def keep(self, candidates: Selection, *, count: int, per_row: bool) -> Selection:
        """The candidates that win over all features, ``count`` a row or in all."""
        rows = candidates.row_count if per_row else 1
        return keep_winners(candidates, count, rows=rows, rank=self.rank, world=self.world)

    def norm(self, gradients: Weights) -> Float[Tensor, ""]:
        """The norm of the whole dictionary's gradient."""
        shared = {"b_dec", "W_skip"}
        squares = {name: _sum_of_squares(array) for name, array in gradients.tensors().items()}
        own = self.sum_(torch.stack([square for name, square in squares.items() if name not in shared]).sum())
        return (own + sum(square for name, square in squares.items() if name in shared)).sqrt()


def _sum_of_squares(array: Tensor) -> Float[Tensor, ""]:
    """Row by row, then in float64."""
    rows = array.T if array.ndim == 2 and array.stride(0) == 1 else array
    return torch.linalg.vector_norm(rows.reshape(len(rows), -1), dim=1).double().square_().sum()


WHOLE = Shard()
