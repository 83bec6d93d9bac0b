"""The first weights: every feature comes from a row of the cache.

With x and y the source and the target of a randomly drawn row, minus their means, a feature has

    W_enc[f] = 0.2 * x / |x|     b_enc = -W_enc @ mean(source)
    W_dec[f] = y / |y|           b_dec = mean(target)

so it starts as "where the source is like this row's, the target is too". Random directions are mostly unlike anything
in the data: a quarter of a dictionary that started from them ended dead, and the rest explained less.

In some layers a few rows have most of the target's variance. There the largest of the drawn rows come first, so that
every prefix starts with them. Without that, FVU of the first prefix of SmolLM2's layer 2 was .15, .09 and .09 with
three seeds (.95 with one of them under the pooled loss alone), with it .06.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cache.loader import Loader
from cache.reader import CacheReader, View
from common.errors import UsageError
from train.arrays.optim import unit_rows_
from train.arrays.parameters import Parameters
from train.arrays.units import Units

# Length of an encoder row, in training units, where a source is about as long as the square root of its width.
_ENCODER_NORM = 0.2
# Share of a random direction in every row: where rows come again, or are equal, features must differ.
_NOISE = 0.1
_BATCH_ROWS = 4096
"""Rows that are read at a time."""
_RULED = 0.15
"""A few rows have most of the variance where the largest hundredth of the drawn rows has more than this share of their
sum of squares. In 24 layers of the embedded models it has .01 to .13, in four of six layers of SmolLM2 135M and Gemma 3
270M .03 to .09; in the other two .20 to .32 and .65 to .72."""
_LARGEST = 8
"""Rows that come first then. With 4 the first prefix was worse, with 32 a fifth of it became near-copies."""


def initial_weights(
    reader: CacheReader, units: Units, *, dict_size: int, skip: bool, view: View, seed: int, device: str
) -> Parameters:
    """Features from rows that ``seed`` draws; the skip starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    source, target = _drawn_rows(reader, count=dict_size, view=view, seed=seed)
    means = units.source(units.source_mean[None])[0], units.target(units.target_mean[None])[0]
    centred = units.target(target) - means[1]
    order = order_of_rows(centred)
    encoder = _ENCODER_NORM * _directions(units.source(source[order]) - means[0], generator)
    arrays = {
        "W_enc": encoder,
        "b_enc": -encoder @ means[0],
        "W_dec": _directions(centred[order], generator),
        "b_dec": means[1],
    }
    if skip:
        arrays["W_skip"] = torch.zeros(source.shape[1], target.shape[1])
    return Parameters(**arrays).to(device)


def order_of_rows(centred: Float[Tensor, "rows d_target"]) -> Int[Tensor, " rows"]:
    """The order in which drawn rows become features: as they were drawn, but the largest first where a few rows have
    most of the variance. ``centred`` are targets minus their mean."""
    squares = torch.linalg.vector_norm(centred, dim=1).double().square()
    descending = squares.argsort(descending=True, stable=True)
    hundredth = max(1, len(squares) // 100)
    if squares[descending[:hundredth]].sum() <= _RULED * squares.sum():
        return torch.arange(len(squares))
    is_first = torch.zeros(len(squares), dtype=torch.bool)
    is_first[descending[:_LARGEST]] = True
    return torch.cat([descending[:_LARGEST], (~is_first).nonzero()[:, 0]])


def _drawn_rows(
    reader: CacheReader, *, count: int, view: View, seed: int
) -> tuple[Float[Tensor, "rows d_source"], Float[Tensor, "rows d_target"]]:
    """The first ``count`` rows of an epoch in the order of ``seed``: only the pools with these rows are read from the
    disk.

    If there are fewer rows, they are repeated. Raises UsageError if there are none.
    """
    source = list[Tensor]()
    target = list[Tensor]()
    with Loader(reader, batch_rows=min(count, _BATCH_ROWS), seed=seed, view=view) as loader:
        for number in range(loader.batches_per_epoch):
            batch = loader.batch(number)
            source.append(batch.source)
            target.append(batch.target.cpu())  # a target that is recomputed is on the device that did it
            if sum(map(len, source)) >= count:
                break
    found = sum(map(len, source))
    if not found:
        raise UsageError("Every training row of this cache belongs to a special token.", where=reader.path)
    rows = torch.arange(count) % found
    return torch.cat(source)[rows], torch.cat(target)[rows]


def _directions(rows: Float[Tensor, "rows width"], generator: torch.Generator) -> Float[Tensor, "rows width"]:
    """Every row's direction plus a little of a random one, so that no two rows have the same direction."""
    noise = torch.randn(rows.shape, generator=generator)
    for matrix in (rows, noise):
        unit_rows_(matrix)
    mixed = rows.add_(noise, alpha=_NOISE)
    unit_rows_(mixed)
    return mixed
