"""The auxiliary loss, which gives dead features a gradient (Gao et al. 2024, with a transcoder's target).

    e     = target - y                    of the whole dictionary, held fixed
    e_hat = sum over the aux_top_k largest dead pre-activations of a row, rectified, of  a * W_dec[feature]
    aux   = alpha * min(dead / aux_top_k, 1) * sum ||e_hat - e||^2 / sum ||e - mean(e)||^2

e_hat has neither ``b_dec`` nor the skip: y has both already. Only dead features get a gradient.

With aux_top_k half the target's width, a row uses most of a few thousand dead features. On a CPU they are gathered all
the same; on a GPU four dense matrix products do it, in the compute dtype and summed in float32.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from train.arrays.batch_share import BatchShare
from train.arrays.optim import remove_parallel_
from train.arrays.parameters import Parameters
from train.dead.features import Dead
from train.loss import StepResult
from train.resolved import ResolvedSettings
from transcoder.decode import transpose, weighted_sums_into
from transcoder.sharded import UNSHARDED, Shard, winners
from transcoder.sparse_code import SparseCode


@dataclass(frozen=True)
class Auxiliary:
    """``sum ||e_hat - e||^2`` of a batch and its gradient in the dead features' weights, before any scaling.

    The decoder's has no component along its rows, whose norm stays 1.
    """

    error: Float[Tensor, ""]
    encoder: Float[Tensor, "dead d_source"]
    bias: Float[Tensor, " dead"]
    decoder: Float[Tensor, "dead d_target"]


def auxiliary(
    weights: Parameters,
    source: Float[Tensor, "rows d_source"],
    *,
    pre: Float[Tensor, "rows dead"],
    residual: Float[Tensor, "rows d_target"],
    dead: Dead,
    top_k: int,
    dtype: torch.dtype | None = None,
    shard: Shard = UNSHARDED,
) -> Auxiliary:
    """How far the dead features are from ``-residual`` (target minus reconstruction), and the gradient.

    ``pre`` holds the pre-activations of ``dead.features``, ``dtype`` is that of matrix products on a GPU (the weights'
    own where None).
    With a ``shard``, ``dead`` are those among this process's features, and the error is that of all processes.
    """
    values, columns = _largest(dead.or_else(pre, -torch.inf), top_k, shard)
    if prefers_products(pre, top_k=top_k):
        code = values.new_zeros(pre.shape).scatter_(1, columns, values)
        decoder = weights.W_dec.index_select(0, dead.features)
        return _by_products(code, source, residual=residual, decoder=decoder, dtype=dtype or code.dtype, shard=shard)
    offsets = torch.arange(len(values) + 1, dtype=torch.int32, device=pre.device) * values.shape[1]
    code = SparseCode(values.flatten(), columns.int().flatten(), offsets)
    decoder = weights.W_dec.index_select(0, dead.features)
    errors = torch.empty_like(residual)
    weighted_sums_into(errors, decoder, code.features, weight=code.values, offsets=offsets)
    error = shard.sum_(errors).add_(residual).square().sum(dim=1).double().sum()
    d_pre = (torch.mm(errors.mul_(2), decoder.T).gather(1, columns) * (values > 0)).flatten()
    return _gradient(error, source.to(errors.dtype), code=code, errors=errors, d_pre=d_pre, decoder=decoder)


def _gradient(
    error: Float[Tensor, ""],
    source: Float[Tensor, "rows d_source"],
    *,
    code: SparseCode,
    errors: Float[Tensor, "rows d_target"],
    d_pre: Float[Tensor, " active"],
    decoder: Float[Tensor, "dead d_target"],
) -> Auxiliary:
    """The gradient in the dead features' weights, given that in their pre-activations."""
    dead = decoder.shape[0]
    index = transpose(code, dead)
    order = index.order.long()
    offsets = index.offsets
    rows = code.rows()[order]
    d_pre = d_pre[order]
    d_encoder = source.new_empty(dead, source.shape[1])
    d_decoder = torch.empty_like(decoder)
    weighted_sums_into(d_encoder, source, rows, weight=d_pre, offsets=offsets)
    weighted_sums_into(d_decoder, errors, rows, weight=code.values[order], offsets=offsets)
    remove_parallel_(d_decoder, decoder)
    d_bias = torch.segment_reduce(d_pre, "sum", offsets=offsets.long())
    return Auxiliary(error, d_encoder, d_bias, d_decoder)


def prefers_products(pre: Float[Tensor, "rows dead"], *, top_k: int) -> bool:
    """Whether dense products are faster: on a GPU, unless a row uses fewer than a sixteenth of the dead features.

    Reason: a gather reads 4 bytes for every number that a product multiplies, and in the time that an H100 needs to
    read one number it multiplies about 16 in float32, 130 in bfloat16.
    """
    return pre.device.type != "cpu" and pre.shape[1] <= 16 * top_k


def _by_products(
    code: Float[Tensor, "rows dead"],
    source: Float[Tensor, "rows d_source"],
    *,
    residual: Float[Tensor, "rows d_target"],
    decoder: Float[Tensor, "dead d_target"],
    dtype: torch.dtype,
    shard: Shard,
) -> Auxiliary:
    """The same result as by gathering, from the dense code."""
    dead = len(decoder)
    idle = -dead % 16  # fast products on a GPU need rows of a multiple of 32 bytes
    code = pad(code, (0, idle)).to(dtype)
    rounded = pad(decoder, (0, 0, 0, idle)).to(dtype)
    errors = shard.sum_(product(code, rounded)).add_(residual)
    error = errors.square().sum(dim=1).double().sum()

    d_errors = errors.mul_(2).to(dtype)
    d_pre = product(d_errors, rounded.T) * (code > 0)
    d_encoder = product(d_pre.to(dtype).T, source.to(dtype))[:dead]
    d_decoder = product(code.T, d_errors)[:dead]
    remove_parallel_(d_decoder, decoder)
    return Auxiliary(error, d_encoder, d_pre.sum(dim=0)[:dead], d_decoder)


def product(left: Float[Tensor, "rows inner"], right: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
    """A matrix product in float32 at least, whatever the factors' dtype."""
    if left.is_cuda and left.dtype == torch.bfloat16:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.mm(left, right).to(torch.promote_types(left.dtype, torch.float32))


def spread(residual: Float[Tensor, "rows d_target"]) -> Float[Tensor, " statistics"]:
    """Sums from which ``variation`` follows, once added over processes: rows, sum of e, sum of ||e||^2."""
    rows = torch.full((1,), residual.shape[0], dtype=torch.float64, device=residual.device)
    squares = residual.square().sum(dim=1).double().sum().unsqueeze(0)
    return torch.cat([rows, residual.double().sum(dim=0), squares])


def variation(statistics: Float[Tensor, " statistics"]) -> Float[Tensor, ""]:
    """``sum ||e - mean(e)||^2`` from the sums of ``spread``."""
    return statistics[-1] - statistics[1:-1].square().sum() / statistics[0]


def auxiliary_scale(
    *, alpha: float, dead: Float[Tensor, ""], top_k: int, variation: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """The weight of the squared error: smaller while few features are ``dead``, 0 while none is."""
    return alpha * (dead / torch.full_like(dead, top_k)).clamp(max=1.0) * variation.clamp(min=1e-30).reciprocal()


def add_auxiliary_(gradients: Parameters, extra: Auxiliary, *, dead: Dead, scale: Float[Tensor, ""]) -> None:
    """Add the scaled gradient of the dead features to the whole gradient."""
    pairs = ((gradients.W_enc, extra.encoder), (gradients.b_enc, extra.bias), (gradients.W_dec, extra.decoder))
    for gradient, addition in pairs:
        gradient.index_add_(0, dead.features, addition * scale.to(addition.dtype))


def _largest(
    pre: Float[Tensor, "rows dead"], top_k: int, shard: Shard
) -> tuple[Float[Tensor, "rows own"], Int[Tensor, "rows own"]]:
    """The ``top_k`` largest of every row over all processes, rectified: those of this process, 0 where they lose."""
    values, columns = pre.topk(min(top_k, pre.shape[1]), dim=1, sorted=False)
    if shard.world > 1:
        values = values.masked_fill(~winners(values, top_k, ranks=shard), 0)
    return values.relu(), columns


def add_auxiliary_loss_(
    weights: Parameters,
    source: Float[Tensor, "rows d_source"],
    *,
    dead: Dead,
    result: StepResult,
    settings: ResolvedSettings,
    share: BatchShare,
    dtype: torch.dtype,
    shard: Shard,
) -> Float[Tensor, ""]:
    """Add the auxiliary loss's gradient to the step's; returns the loss of the whole batch.

    The gradient is divided by the share's fraction, by which the step multiplies it again.
    """
    extra = auxiliary(
        weights,
        source,
        pre=result.watched,
        residual=result.residual,
        dead=dead,
        top_k=settings.aux_top_k,
        dtype=dtype,
        shard=shard,
    )
    statistics = spread(result.residual) * bool(share.rows)
    error = extra.error * bool(share.rows)
    share.ranks.sum_all_([statistics, error])
    scale = auxiliary_scale(
        alpha=settings.aux_alpha,
        dead=shard.sum_(dead.number()),
        top_k=settings.aux_top_k,
        variation=variation(statistics),
    )
    add_auxiliary_(result.gradients, extra, dead=dead, scale=scale / (share.fraction or 1.0))
    return error * scale
