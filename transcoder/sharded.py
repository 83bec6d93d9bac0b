"""A dictionary divided among processes, if one GPU is too small: process r of n owns features r, r + n, r + 2 n, ...

So every process owns the same share of every prefix, and has the same work. All read the whole batch:

    1. each selects its own ``top_k`` candidates a row; one all-gather of their values tells which of them win
    2. each decodes its winners into (row, group) sums; one all-reduce adds them up
    3. errors and the gradients of its own features need no exchange; those of b_dec and the skip are the same in every
       process

The selection is exact: no other feature of a process could be among the winners. So the sharded step is the step of a
single process, up to rounding.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from common.distributed import Ranks
from common.errors import UsageError
from transcoder.rules.rule import Rule
from transcoder.sparse_code import SparseCode

_BY_FEATURE = ("W_enc", "b_enc", "W_dec", "threshold")
"""The arrays with one row a feature; the others are the same in every process."""


@dataclass(frozen=True)
class Shard(Ranks):
    """This process's share of a dictionary. A single process owns all of it and exchanges nothing."""

    def check(self, *, dict_size: int, top_k: int) -> None:
        """Raises UsageError if a process would own fewer features than a row may use."""
        if top_k > dict_size // self.world:
            raise UsageError(
                f"top_k {top_k} exceeds the {dict_size // self.world} features of each of {self.world} processes.",
                remedy="Use fewer processes, or switch shard_dictionary off.",
            )

    def owned(self, features: int) -> int:
        """How many of the first ``features`` features this process owns."""
        return max(0, math.ceil((features - self.rank) / self.world))

    def prefixes(self, prefixes: Iterable[int]) -> tuple[int, ...]:
        """The prefixes' ends among this process's features."""
        return tuple(self.owned(prefix) for prefix in prefixes)

    def own(self, rows: Tensor) -> Tensor:
        """This process's own copy of its features' rows of an array of one row a feature."""
        return rows if self.world == 1 else rows[self.rank :: self.world].clone()

    def take(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's features of a whole dictionary's arrays."""
        return {name: self.own(array) if name in _BY_FEATURE else array for name, array in arrays.items()}

    def gathered_arrays(self, arrays: Mapping[str, Tensor], *, dict_size: int) -> dict[str, Tensor]:
        """The arrays of the whole dictionary, in the main memory of every process."""
        if self.world == 1:
            return dict(arrays)
        return {
            name: (self.interleave(array, dict_size) if name in _BY_FEATURE else array).cpu()
            for name, array in arrays.items()
        }

    def interleave(self, rows: Tensor, dict_size: int) -> Tensor:
        """One row a feature of the whole dictionary, from every process's rows."""
        if self.world == 1:
            return rows
        longest = math.ceil(dict_size / self.world)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        return self.gathered(padded).transpose(0, 1).flatten(0, 1)[:dict_size].contiguous()

    def mean(self, own: Float[Tensor, ""], features: int) -> Float[Tensor, ""]:
        """The mean over the whole dictionary, from the mean ``own`` over this process's ``features``."""
        return own if self.world == 1 else self.sum_(own * features) / self.total(features, own.device)

    def norm(self, gradients: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """The norm of the whole dictionary's gradient."""
        squares = {name: _sum_of_squares(array) for name, array in gradients.items()}
        own = self.sum_(torch.stack([square for name, square in squares.items() if name in _BY_FEATURE]).sum())
        return (own + sum(square for name, square in squares.items() if name not in _BY_FEATURE)).sqrt()


UNSHARDED = Shard()


def winners(values: Float[Tensor, "rows candidates"], count: int, *, ranks: Ranks) -> Bool[Tensor, "rows candidates"]:
    """Which of this process's candidates, at most ``count`` a row, are among a row's ``count`` largest of all.

    Exactly ``count`` win a row; of equal values the first ones, in the order of the processes. If there is a NaN, all
    win, so that the NaN is not lost.
    """
    own = values.shape[1]
    # Not every back end can send every dtype; all can send float32 and float64.
    exact = values.to(torch.promote_types(values.dtype, torch.float32))
    padded = torch.nn.functional.pad(exact, (0, count - own), value=float("-inf"))
    offered = ranks.gathered(padded).transpose(0, 1).flatten(1)
    smallest = offered.topk(count, dim=1, sorted=False).values.amin(dim=1, keepdim=True)
    above = ~(offered <= smallest)
    equal = offered == smallest
    won = above | (equal & (equal.cumsum(dim=1) <= count - above.sum(dim=1, keepdim=True)))
    return won[:, ranks.rank * count :][:, :own]


def keep_winners(candidates: SparseCode, rule: Rule, *, batch_rows: int, ranks: Ranks) -> SparseCode:
    """The candidates that the rule keeps, over all processes. Counting them waits for the device."""
    if ranks.world == 1 or rule.scope == "feature" or not rule.kept(batch_rows):
        return candidates
    contests = candidates.row_count if rule.scope == "row" else 1
    won = winners(candidates.values.view(contests, -1), rule.kept(batch_rows), ranks=ranks).flatten()
    before = torch.zeros(won.numel() + 1, dtype=torch.int32, device=won.device)
    torch.cumsum(won, dim=0, dtype=torch.int32, out=before[1:])
    return SparseCode(candidates.values[won], candidates.features[won], before[candidates.offsets.long()])


def _sum_of_squares(array: Tensor) -> Float[Tensor, ""]:
    """Row by row, then in float64: a float32 sum of millions of squares is off by a thousandth."""
    return torch.linalg.vector_norm(array.reshape(len(array), -1), dim=1).double().square_().sum()
