"""How alike decoder directions are. The field's guides call some of this "absorption"; it is not.

    max_cosine(i) = max over j != i of  w_i . w_j        w = decoder rows, normalised here whatever their norm
    mean_max_cosine, twin_share = share of i with max_cosine(i) > 0.9, pair_share = share of pairs above 0.9

For each prefix, i and j both lie below it. Blocks of rows against blocks of rows, upper triangle only: memory is one
block.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from evaluate.metrics.inputs import MetricInputs
from evaluate.metrics.metric import Findings, Metric, State

TWIN_ABOVE = 0.9
"""A feature has a twin if another decoder row has a larger cosine with its own."""

_BLOCK = 2048
"""Rows against rows at a time: 16 MB of cosines."""


@dataclass(frozen=True)
class Redundancy(Metric):
    """Reads no rows, only the decoder."""

    W_dec: Float[Tensor, "dict_size d_target"]
    prefixes: tuple[int, ...]

    @classmethod
    def create(cls, inputs: MetricInputs) -> "Redundancy":
        """From the decoder rows only: no activations are needed."""
        return cls(inputs.dictionary.W_dec, inputs.dictionary.prefixes)

    def compute(self, state: State) -> Findings:  # noqa: ARG002
        """The ``redundancy`` fields, from a product of all unit rows in blocks."""
        return Findings({"redundancy": redundancy(self.W_dec, self.prefixes, block=_BLOCK)})


def redundancy(W_dec: Float[Tensor, "dict_size d_target"], prefixes: tuple[int, ...], *, block: int) -> dict[str, Any]:
    """The three numbers for every prefix; those of the whole dictionary at the top level. A single feature has no
    cosine."""
    highest, pairs = _largest_cosines(normalize(W_dec.float(), dim=1), prefixes, block=block)
    per_prefix = [
        {
            "mean_max_cosine": float(highest[:end, index].mean()) if end > 1 else None,
            "twin_share": float((highest[:end, index] > TWIN_ABOVE).double().mean()),
            "pair_share": int(pairs[index]) / max(1, end * (end - 1) // 2),
        }
        for index, end in enumerate(prefixes)
    ]
    return per_prefix[-1] | {"per_prefix": per_prefix}


def _largest_cosines(
    rows: Float[Tensor, "dict_size d_target"], prefixes: tuple[int, ...], *, block: int
) -> tuple[Float[Tensor, "dict_size prefixes"], Int[Tensor, " prefixes"]]:
    """Each feature's largest cosine with another one below each prefix, and the number of near pairs below it."""
    highest = torch.full((len(rows), len(prefixes)), -1.0, device=rows.device)
    pairs = torch.zeros(len(prefixes), dtype=torch.int64, device=rows.device)
    spans = _spans(prefixes, block)
    for number, (start, end, group) in enumerate(spans):
        for other_start, other_end, other_group in spans[number:]:
            cosine = rows[start:end] @ rows[other_start:other_end].T
            if start == other_start:
                cosine.fill_diagonal_(-1.0)
            _raise(highest[start:end, other_group], cosine.amax(dim=1))
            _raise(highest[other_start:other_end, group], cosine.amax(dim=0))
            near = (cosine > TWIN_ABOVE).sum()
            pairs[other_group] += near // 2 if start == other_start else near
    return highest.cummax(dim=1).values, pairs.cumsum(dim=0)


def _raise(highest: Float[Tensor, " rows"], found: Float[Tensor, " rows"]) -> None:
    torch.maximum(highest, found, out=highest)


def _spans(prefixes: tuple[int, ...], block: int) -> list[tuple[int, int, int]]:
    """(start, end, group) of blocks that do not cross the end of a prefix."""
    starts = (0, *prefixes[:-1])
    return [
        (start, min(start + block, end), group)
        for group, (first, end) in enumerate(zip(starts, prefixes, strict=True))
        for start in range(first, end, block)
    ]
