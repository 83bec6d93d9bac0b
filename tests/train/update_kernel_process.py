"""Run under TRITON_INTERPRET=1: the update kernel against PyTorch's fused Adam and the passes after it."""

import math
import sys

import torch
from torch.optim.adam import adam

from train.optim import unit_rows_
from train.update_kernel import AdamStep, can_update, update_array_

BETA1, BETA2, EPSILON, LR = 0.9, 0.999, 1e-8, 0.01


def expected(arrays, *, taken, decay, decoupled, norm, divisor, unit_rows):
    """What three steps of PyTorch's make of copies of the arrays."""
    weights, gradient, first, second = (array.clone() for array in arrays)
    adam(
        [weights],
        [gradient],
        [first],
        [second],
        [],
        [torch.full((), float(taken), device=norm.device)],
        fused=True,
        grad_scale=divisor,
        found_inf=(~norm.isfinite()).float(),
        decoupled_weight_decay=decoupled,
        amsgrad=False,
        beta1=BETA1,
        beta2=BETA2,
        lr=LR,
        weight_decay=decay,
        eps=EPSILON,
        maximize=False,
    )
    if unit_rows:
        unit_rows_(weights)
    return weights, first, second


def check(shape, device, *, taken=0, decay=0.0, decoupled=False, norm=3.0, unit_rows=False, dtype=None):
    generator = torch.Generator(device).manual_seed(0)
    weights, gradient, first = torch.randn(3, *shape, generator=generator, device=device)
    second = 0.1 * first.square()
    norm, divisor = torch.tensor(norm, device=device), torch.tensor(1.5, device=device)
    given = {"decay": decay, "decoupled": decoupled, "norm": norm, "divisor": divisor, "unit_rows": unit_rows}
    wanted = expected((weights, gradient, first, second), taken=taken, **given)
    rounded = None if dtype is None else torch.empty_like(weights, dtype=dtype)
    step = AdamStep(
        beta1=BETA1,
        beta2=BETA2,
        epsilon=EPSILON,
        step_size=LR / (1 - BETA1 ** (taken + 1)),
        root=math.sqrt(1 - BETA2 ** (taken + 1)),
        lr=LR,
        decoupled=decoupled,
    )
    assert can_update(weights)
    update_array_(
        weights,
        gradient,
        first=first,
        second=second,
        rounded=rounded,
        norm=norm,
        divisor=divisor,
        step=step,
        weight_decay=decay,
        unit_rows=unit_rows,
    )
    for name, value, target in zip(("weights", "first", "second"), (weights, first, second), wanted, strict=True):
        torch.testing.assert_close(value, target, rtol=2e-6, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
    if rounded is not None:
        # Triton's interpreter cuts bits off where a card rounds to the nearest.
        last_place = 0.0 if weights.is_cuda else torch.finfo(dtype).eps
        torch.testing.assert_close(rounded, weights.to(dtype), rtol=last_place, atol=0.0)


def main(device):
    check((1500,), device)
    check((5, 300), device, taken=7, dtype=torch.bfloat16)
    check((5, 300), device, taken=7, decay=0.1)
    check((5, 300), device, taken=2000, decay=0.1, decoupled=True, dtype=torch.float16)
    check((6, 48), device, unit_rows=True, dtype=torch.bfloat16)
    check((6, 40), device, taken=3, unit_rows=True)
    for norm in (float("nan"), float("inf")):
        check((6, 40), device, norm=norm, unit_rows=True, dtype=torch.bfloat16)
    print("equal")


main(sys.argv[1])
