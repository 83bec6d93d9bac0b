"""The learning rate at every step, and one update of the weights.

    rate(t) = lr * (t + 1) / warmup                                        warm-up
    rate(t) = lr, then from the start of the decay down to min_lr at the last step, t = steps - 1

An update clips the gradient, runs Adam on master weights in float32, and scales the decoder's rows to norm 1 again. The
decoder's gradient comes without its component along those rows. The state is the two moments of every array.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from common.device import to_device
from train.arrays.parameters import Parameters
from train.resolved import ResolvedSettings
from transcoder.compat import fused_adam_
from transcoder.decode import uses_kernels
from transcoder.sharded import UNSHARDED, Shard

_DECAYED = ("W_enc", "W_skip")
_EPSILON = 1e-8
"""PyTorch's default for Adam."""


def learning_rate(settings: ResolvedSettings, step: int) -> float:
    """The rate of step ``step``, 0-based."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return settings.lr
    done = max(0, step + 1 - (settings.steps - settings.decay_steps)) / settings.decay_steps
    left = 1 - done if settings.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
    return settings.min_lr + (settings.lr - settings.min_lr) * left


@dataclass(frozen=True)
class Moments:
    """Adam's running means of the gradient and of its square, by name, laid out as the parameters are.

    ``first`` is empty where its decay (``beta1``) is 0: the mean is then the gradient itself, and takes no memory.
    """

    first: dict[str, Tensor]
    second: dict[str, Tensor]

    @staticmethod
    def zero(weights: Parameters, *, beta1: float = 0.9) -> "Moments":
        """Before the first step."""
        arrays = weights.tensors()
        first, second = ({name: torch.zeros_like(array) for name, array in arrays.items()} for _ in range(2))
        return Moments(first if beta1 else {}, second)


def update_(
    weights: Parameters,
    gradients: Parameters,
    *,
    moments: Moments,
    settings: ResolvedSettings,
    step: int,
    numbers: Float[Tensor, " numbers"] | None = None,
    rounded: Parameters | None = None,
    shard: Shard = UNSHARDED,
) -> Float[Tensor, ""]:
    """Take step ``step`` in place; returns the norm of the gradient before clipping. ``gradients`` are overwritten.

    A gradient that is not finite changes only the decoder's rounding; the caller sees it in the norm. Where the
    update is ``in_one_pass``, ``rounded`` gets the new weights in its own dtype and ``numbers`` are read instead of
    ``step``: the ``step_numbers`` of the step, on the device. Otherwise both are left alone.
    """
    arrays = weights.tensors()
    grads = gradients.tensors()
    assert all(array.is_contiguous() for array in (*arrays.values(), *grads.values()))
    norm = shard.norm(grads).to(gradients.b_dec.dtype)
    if in_one_pass(weights):
        if numbers is None:
            numbers = to_device(step_numbers(settings, step), norm.device)
        _update_in_one_pass_(
            arrays, grads, moments=moments, settings=settings, numbers=numbers, rounded=rounded, norm=norm
        )
        return norm
    for names, weight_decay in _groups(arrays, settings.weight_decay):
        fused_adam_(
            [arrays[name] for name in names],
            [grads[name] for name in names],
            first=[moments.first.get(name, grads[name]) for name in names],
            second=[moments.second[name] for name in names],
            step=step,
            divisor=_divisor(norm, settings.clip_norm),
            is_bad=(~norm.isfinite()).float(),
            decoupled=settings.optimizer == "adamw",
            beta1=settings.beta1,
            beta2=settings.beta2,
            lr=learning_rate(settings, step),
            weight_decay=weight_decay,
            epsilon=_EPSILON,
        )
    unit_rows_(weights.W_dec)
    return norm


def in_one_pass(weights: Parameters) -> bool:
    """Whether one kernel can do the whole update: float32 weights, and rows that fit into a program's registers."""
    # A program holds a whole row, its gradient and both moments; wider ones would spill to memory.
    return uses_kernels(weights.W_dec) and weights.W_dec.dtype == torch.float32 and weights.W_dec.shape[1] <= 16_384


def step_numbers(settings: ResolvedSettings, step: int) -> Float[Tensor, " numbers"]:
    """The numbers of an update that change from step to step: lr, lr / (1 - beta1^t), sqrt(1 - beta2^t), with t = step
    + 1."""
    lr = learning_rate(settings, step)
    step_size = lr / (1 - settings.beta1 ** (step + 1))
    return torch.tensor([lr, step_size, math.sqrt(1 - settings.beta2 ** (step + 1))])


def _update_in_one_pass_(
    arrays: dict[str, Tensor],
    gradients: dict[str, Tensor],
    *,
    moments: Moments,
    settings: ResolvedSettings,
    numbers: Float[Tensor, " numbers"],
    rounded: Parameters | None,
    norm: Float[Tensor, ""],
) -> None:
    from train.arrays.update_kernel import Adam, update_array_

    adam_settings = Adam(settings.beta1, settings.beta2, _EPSILON, is_decoupled=settings.optimizer == "adamw")
    divisor = _divisor(norm, settings.clip_norm)
    copies = {} if rounded is None else rounded.tensors()
    for names, weight_decay in _groups(arrays, settings.weight_decay):
        for name in names:
            update_array_(
                arrays[name],
                gradients[name],
                first=moments.first.get(name, gradients[name]),
                second=moments.second[name],
                rounded=copies.get(name),
                norm=norm,
                divisor=divisor,
                numbers=numbers,
                adam=adam_settings,
                weight_decay=weight_decay,
                unit_rows=name == "W_dec",
            )


def _groups(arrays: dict[str, Tensor], weight_decay: float) -> list[tuple[list[str], float]]:
    """Names of the arrays that share a weight decay: matrices whose rows need not have norm 1, and the rest."""
    if not weight_decay:
        return [(list(arrays), 0.0)]
    decayed = [name for name in arrays if name in _DECAYED]
    return [(decayed, weight_decay), ([name for name in arrays if name not in decayed], 0.0)]


def _divisor(norm: Float[Tensor, ""], clip_norm: float | None) -> Float[Tensor, ""]:
    """What Adam divides the gradient by, so that its norm is at most ``clip_norm``."""
    return torch.ones_like(norm) if clip_norm is None else (norm / clip_norm).clamp(min=1.0)


def remove_parallel_(gradient: Float[Tensor, "rows width"], unit: Float[Tensor, "rows width"]) -> None:
    """Remove from every row of ``gradient`` its component along the same row of ``unit``."""
    along = torch.linalg.vecdot(gradient, unit)
    gradient.addcmul_(unit, along[:, None], value=-1)


def unit_rows_(matrix: Float[Tensor, "rows width"]) -> None:
    """Scale every row to norm 1."""
    matrix.div_(torch.linalg.vector_norm(matrix, dim=1, keepdim=True).clamp_(min=1e-12))
