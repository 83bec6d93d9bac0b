"""Run under TRITON_INTERPRET=1: the update kernel against PyTorch's fused Adam and the passes after it."""

import math
import sys

import torch
from torch.optim.adam import adam

from train.arrays import optim
from train.arrays.optim import unit_rows_
from train.arrays.parameters import Parameters, random_parameters
from train.arrays.update_kernel import Adam, update_array_
from train.arrays.workspace import Workspace
from train.config import TrainSettings
from train.resolved import resolve
from transcoder.rules.topk import TopK

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
    root = math.sqrt(1 - BETA2 ** (taken + 1))
    numbers = torch.tensor([LR, LR / (1 - BETA1 ** (taken + 1)), root], device=device)
    update_array_(
        weights,
        gradient,
        first=first,
        second=second,
        rounded=rounded,
        norm=norm,
        divisor=divisor,
        numbers=numbers,
        adam=Adam(BETA1, BETA2, EPSILON, is_decoupled=decoupled),
        weight_decay=decay,
        unit_rows=unit_rows,
    )
    for name, value, target in zip(("weights", "first", "second"), (weights, first, second), wanted, strict=True):
        torch.testing.assert_close(value, target, rtol=2e-6, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
    if rounded is not None:
        # Triton's interpreter cuts bits off where a card rounds to the nearest.
        last_place = 0.0 if weights.is_cuda else torch.finfo(dtype).eps
        torch.testing.assert_close(rounded, weights.to(dtype), rtol=last_place, atol=0.0)


def check_whole_update(device, *, bad=False, **changes):
    """Three updates of all arrays, the step's way, beside PyTorch's passes."""
    settings = resolve(TrainSettings(prefixes=(8, 24), top_k=2, steps=9, **changes), model="", d_target=10)
    ways = {}
    for kernel in (True, False):
        optim.in_one_pass = lambda _, kernel=kernel: kernel
        torch.manual_seed(4)
        weights = random_parameters(12, 10, dict_size=24, skip=True).to(device)
        moments = optim.Moments.zero(weights)
        rounded = Workspace.like(weights, rows=4, rule=TopK(2), dtype=torch.bfloat16).weights
        norms = []
        for step in range(3):
            drawn = {name: torch.randn_like(array) for name, array in weights.tensors().items()}
            gradients = Parameters(**drawn)
            gradients.b_dec[0] += float("nan") if bad and step == 1 else 0.0
            given = {"moments": moments, "settings": settings, "step": step, "rounded": rounded}
            norms.append(optim.update_(weights, gradients, **given))
        ways[kernel] = {**weights.tensors(), "norms": torch.stack(norms)}
        ways[kernel] |= {
            f"{which} {name}": array for which in ("first", "second") for name, array in getattr(moments, which).items()
        }
        if kernel:
            for name, array in rounded.tensors().items():
                torch.testing.assert_close(array.float(), weights.tensors()[name], rtol=2**-7, atol=0.0)
    for name, array in ways[True].items():
        torch.testing.assert_close(array, ways[False][name], rtol=1e-5, atol=1e-6, equal_nan=True)


def main(device):
    check((1500,), device)
    check((5, 300), device, taken=7, dtype=torch.bfloat16)
    check((5, 300), device, taken=7, decay=0.1)
    check((5, 300), device, taken=2000, decay=0.1, decoupled=True, dtype=torch.float16)
    check((6, 48), device, unit_rows=True, dtype=torch.bfloat16)
    check((6, 40), device, taken=3, unit_rows=True)
    for norm in (float("nan"), float("inf")):
        check((6, 40), device, norm=norm, unit_rows=True, dtype=torch.bfloat16)
    check_whole_update(device)
    check_whole_update(device, bad=True, clip_norm=None)
    check_whole_update(device, weight_decay=0.1)
    check_whole_update(device, weight_decay=0.1, optimizer="adamw", schedule="cosine")
    print("equal")


main(sys.argv[1])
