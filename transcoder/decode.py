"""Every prefix reconstruction from one sparse decode, and the gradients, touching active features only.

With g(f) the group of feature f (the first prefix that contains it) and a bag for every (row, group):

    bag[r, g]       = sum over active f of row r in group g of  a[r, f] * W_dec[f]
    y[r, p]         = b_dec + bag[r, 0] + ... + bag[r, p]                   running sum over groups
    grad_sums[r, g] = dL/dy[r, g] + dL/dy[r, g + 1] + ...                   reverse running sum
    dL/da[r, f]     = grad_sums[r, g(f)] . W_dec[f]                         gathered dot products
    dL/dW_dec[f]    = sum over rows r that use f of  a[r, f] * grad_sums[r, g(f)]
    dL/dW_enc[f]    = sum over rows r that use f of  dL/dpre[r, f] * source[r]

The last two are the same bagged sum over the transposed index (feature-major). There are no atomics, so the result does
not depend on the order of threads. On a CPU all of it is PyTorch; on CUDA it is kernels.py, if Triton is installed.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from transcoder.compat import bag_products
from transcoder.constants import constant
from transcoder.sharded import UNSHARDED, Shard
from transcoder.sparse_code import SparseCode

_BLOCK = 512
"""Bags that are summed at once on a CPU: at width 2,304 their 5 MB stay in its caches until they are used."""
_CACHED = 1 << 20
"""Numbers a block, where several operations follow each other on the same numbers: 4 MB of float32. With 2,048 rows of
four groups of width 768, scaled, blocks of 2^17, 2^18 and 2^20 took 13.1, 12.9 and 9.1 ms, whole arrays 17.7."""
_HAS_TRITON = find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Bags:
    """The active entries of a batch by (row, group) bags: entry i is in bag ``bag[i]``, ascending."""

    bag: Int[Tensor, " active"]
    offsets: Int[Tensor, " bags_plus_one"]


@dataclass(frozen=True)
class Transposed:
    """The same entries feature by feature: feature f owns ``order[offsets[f]:offsets[f + 1]]``, rows ascending."""

    order: Int[Tensor, " active"]
    offsets: Int[Tensor, " features_plus_one"]


def bags_of(code: SparseCode, prefixes: tuple[int, ...]) -> Bags:
    """The bag of each of a code's entries; entries of one bag are neighbours because features ascend within a row."""
    ends = constant(prefixes, code.features.dtype, code.features.device)
    group = torch.searchsorted(ends, code.features, right=True, out_int32=True)
    bag = code.rows() * len(prefixes) + group
    return Bags(bag, _starts(bag, code.row_count * len(prefixes)))


def transpose(code: SparseCode, dict_size: int) -> Transposed:
    """Sort the entries by feature, stably."""
    features, order = code.features.sort(stable=True)
    return Transposed(order.to(features.dtype), _starts(features, dict_size))


def decode_prefixes(
    code: SparseCode,
    W_dec: Float[Tensor, "dict_size d_target"],
    base: Float[Tensor, " d_target"] | Float[Tensor, "rows d_target"],
    *,
    prefixes: tuple[int, ...],
    shard: Shard = UNSHARDED,
) -> Float[Tensor, "rows prefixes d_target"]:
    """Every prefix's reconstruction; ``base`` is what all of them share: ``b_dec``, and the skip if there is one."""
    bags = bags_of(code, shard.prefixes(prefixes))
    sums = shard.sum_(bag_sums(code, bags, W_dec)).unflatten(0, (-1, len(prefixes)))
    sums[:, 0] += base
    return running_sum_(sums)


def bag_sums(
    code: SparseCode, bags: Bags, W_dec: Float[Tensor, "dict_size d_target"]
) -> Float[Tensor, "bags d_target"]:
    """The sum of every bag's decoder rows, weighted by the activations; in float32 at least."""
    kept = torch.promote_types(W_dec.dtype, torch.float32)
    # The kernels have no autograd; the training step, which computes gradients itself, does not need it.
    if not uses_kernels(W_dec) or _is_differentiated(code.values, W_dec):
        return weighted_sums(W_dec, code.features, code.values, offsets=bags.offsets).to(kept)
    sums = W_dec.new_empty(bags.offsets.numel() - 1, W_dec.shape[1], dtype=kept)
    weighted_sums_into(sums, W_dec, code.features, weight=code.values, offsets=bags.offsets)
    return sums


def weighted_sums(
    table: Float[Tensor, "entries width"],
    index: Int[Tensor, " active"],
    weight: Float[Tensor, " active"],
    *,
    offsets: Int[Tensor, " sums_plus_one"],
) -> Float[Tensor, "sums width"]:
    """Row s is the sum of ``weight[i] * table[index[i]]`` over i from ``offsets[s]`` to ``offsets[s + 1]``."""
    return embedding_bag(
        index, table, offsets, mode="sum", per_sample_weights=weight.to(table.dtype), include_last_offset=True
    )


def weighted_sums_into(
    out: Float[Tensor, "sums width"],
    table: Float[Tensor, "entries width"],
    index: Int[Tensor, " active"],
    *,
    weight: Float[Tensor, " active"],
    offsets: Int[Tensor, " sums_plus_one"],
    less: tuple[Float[Tensor, " sums"], Float[Tensor, "sums width"]] | None = None,
) -> None:
    """``weighted_sums`` written into ``out``; on a CPU in blocks that stay in its caches.

    ``less`` has a number and a row for every sum; their product is subtracted from it.
    """
    if not index.numel():
        out.zero_()
        return
    if uses_kernels(out):
        from transcoder.kernels import weighted_sums_

        weighted_sums_(out, table, index, weight=weight, offsets=offsets, less=less)
        return
    if out.is_cuda:
        out.copy_(weighted_sums(table, index, weight, offsets=offsets))
    else:
        starts = [*offsets[::_BLOCK].tolist(), index.numel()]
        for block, rows in enumerate(out.split(_BLOCK)):
            first = starts[block]
            last = starts[block + 1]
            within = offsets[block * _BLOCK :][: len(rows) + 1] - first
            rows.copy_(weighted_sums(table, index[first:last], weight[first:last], offsets=within))
    if less is not None:
        along, unit = less
        out.addcmul_(unit, along[:, None], value=-1)


def running_sum_(sums: Float[Tensor, "rows groups width"]) -> Float[Tensor, "rows groups width"]:
    """Add up groups in place."""
    for group in range(1, sums.shape[1]):
        sums[:, group] += sums[:, group - 1]
    return sums


def reverse_running_sum_(
    sums: Float[Tensor, "rows groups width"], weights: tuple[float, ...]
) -> Float[Tensor, "rows groups width"]:
    """In place, ``sums[:, g] = weights[g] * sums[:, g] + weights[g + 1] * sums[:, g + 1] + ...``."""
    if weights[-1] != 1.0:
        sums[:, -1] *= weights[-1]
    for group in range(sums.shape[1] - 2, -1, -1):
        torch.add(sums[:, group + 1], sums[:, group], alpha=weights[group], out=sums[:, group])
    return sums


def grad_sums_(
    sums: Float[Tensor, "rows groups width"],
    left: Float[Tensor, "rows width"],
    *,
    weights: tuple[float, ...],
    scale: Float[Tensor, " width"] | None = None,
) -> tuple[Float[Tensor, " groups"], Float[Tensor, "rows width"]]:
    """Turn group sums into the sums of gradients, in place. ``left`` is what the groups should add up to.

    Returns every prefix's squared error and the last prefix's residual. ``weights`` are those of the squared errors;
    the factor 2 of their derivative is added here. ``scale`` multiplies each dimension's error before it is squared,
    in the same pass over memory; the residual is not scaled.
    """
    doubled = tuple(2 * weight for weight in weights)
    if uses_kernels(sums):
        from transcoder.kernels import grad_sums_ as fused_grad_sums_

        shares = constant(doubled, sums.dtype, sums.device)
        squares, residual = fused_grad_sums_(sums, left, weights=shares, scale=scale)
        return squares.double().sum(dim=0), residual
    # In blocks of rows that stay in the processor's cache during all operations.
    step = max(1, _CACHED // sums[0].numel()) if sums.device.type == "cpu" else max(1, len(sums))
    residual = torch.empty_like(left)
    norms = sums.new_empty(sums.shape[:2])
    for rows in (slice(start, start + step) for start in range(0, len(sums), step)):
        _grad_sums_of_rows_(sums[rows], left[rows], doubled, scale, residual=residual[rows], norms=norms[rows])
    # Row by row, then in float64: a float32 sum of millions of squares has an error of a thousandth.
    return norms.double().square_().sum(dim=0), residual


def _grad_sums_of_rows_(
    sums: Float[Tensor, "rows groups width"],
    left: Float[Tensor, "rows width"],
    doubled: tuple[float, ...],
    scale: Float[Tensor, " width"] | None,
    *,
    residual: Float[Tensor, "rows width"],
    norms: Float[Tensor, "rows groups"],
) -> None:
    """``grad_sums_`` of some rows; fills ``residual`` and the ``norms`` of errors."""
    if scale is None:
        sums[:, 0] -= left
        residual.copy_(running_sum_(sums)[:, -1])
    else:
        sums.mul_(scale)
        sums[:, 0] -= left * scale
        torch.div(running_sum_(sums)[:, -1], scale, out=residual)
    torch.linalg.vector_norm(sums, dim=2, out=norms)
    reverse_running_sum_(sums, doubled)
    if scale is not None:
        sums.mul_(scale)


def uses_kernels(array: Tensor) -> bool:
    """Whether the Triton kernels are used for an array."""
    return _INTERPRETED or (array.is_cuda and _HAS_TRITON)


def _is_differentiated(*arrays: Tensor) -> bool:
    return torch.is_grad_enabled() and any(array.requires_grad for array in arrays)


def activation_gradients(
    code: SparseCode,
    bags: Bags,
    W_dec: Float[Tensor, "dict_size d_target"],
    *,
    grad_sums: Float[Tensor, "bags d_target"],
) -> Float[Tensor, " active"]:
    """``grad_sums[bag] . W_dec[feature]`` for every active entry."""
    if uses_kernels(grad_sums):
        from transcoder.kernels import dots

        return dots(grad_sums, W_dec, bag=bags.bag, feature=code.features)
    offsets = bags.offsets[:-1].contiguous()
    return bag_products(grad_sums, W_dec, features=code.features, offsets=offsets, bag=bags.bag)


def _starts(ascending: Int[Tensor, " active"], count: int) -> Int[Tensor, " starts"]:
    """Where each of the numbers 0..count begins in an ascending list of some of them."""
    numbers = torch.arange(count + 1, dtype=ascending.dtype, device=ascending.device)
    return torch.searchsorted(ascending, numbers, out_int32=True)
