"""Run under TRITON_INTERPRET=1: the kernels against PyTorch, and a whole step through them against the reference."""

import sys
from itertools import pairwise

import torch

from train.loss import NestedLoss, nested_step
from train.parameters import random_parameters
from train.reference import reference_step
from train.workspace import Workspace
from transcoder import decode, kernels
from transcoder.rules.batchtopk import select_batchtopk
from transcoder.rules.registry import make_rule

PREFIXES = (8, 20, 21, 40, 64)
TOLERANCE = {torch.float64: 1e-14, torch.float32: 3e-7, torch.bfloat16: 1e-2}


def relative(value, expected):
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def check_operations(dtype, device):
    """Width 300: more than a block, and not a whole number of them. Rows of unequal length, some bags empty."""
    torch.manual_seed(0)
    table = torch.randn(64, 300, device=device).to(dtype)
    selection = select_batchtopk(torch.randn(7, 64, device=device).to(dtype), count=42)
    bags = decode.bags_of(selection, PREFIXES)
    code = selection.dense(64).double()
    ends = (0, *PREFIXES)
    groups = [code[:, a:b] @ table[a:b].double() for a, b in pairwise(ends)]
    expected = torch.stack(groups, dim=1)
    sums = torch.empty(35, 300, dtype=torch.promote_types(dtype, torch.float32), device=device)
    kernels.weighted_sums_(sums, table, selection.features, weight=selection.values, offsets=bags.offsets)
    assert relative(sums, expected.flatten(0, 1)) < TOLERANCE[dtype]
    grad_sums = sums.to(dtype)
    found = kernels.dots(grad_sums, table, bag=bags.bag, feature=selection.features)
    wanted = (grad_sums.double()[bags.bag] * table.double()[selection.features]).sum(dim=1)
    assert relative(found, wanted) < TOLERANCE[dtype]
    check_grad_sums(sums.unflatten(0, (7, 5)))


def check_grad_sums(sums):
    left = torch.randn_like(sums[:, 0])
    weights = torch.tensor([0.1, 0.2, 0.0, 0.4, 0.3], dtype=sums.dtype, device=sums.device)
    errors = sums.cumsum(dim=1) - left[:, None]
    expected = (errors * weights[:, None]).flip(1).cumsum(dim=1).flip(1)
    squares, residual = kernels.grad_sums_(sums, left, weights=weights)
    tolerance = TOLERANCE[sums.dtype]
    assert relative(squares, errors.square().sum(dim=2)) < tolerance
    assert relative(residual, errors[:, -1]) < tolerance
    assert relative(sums, expected) < tolerance


def check_step(activation, dtype, device, tolerance):
    torch.manual_seed(1)
    whole = random_parameters(12, 10, dict_size=64, skip=True, seed=1, dtype=dtype)
    weights = type(whole)(**{name: array.to(device) for name, array in whole.tensors().items()})
    source, target = torch.randn(2, 11, 12, dtype=dtype, device=device)
    target = target[:, :10]
    loss = NestedLoss(PREFIXES, make_rule(activation, 6), 7.5, prefix_weights=(0.1, 0.2, 0.3, 0.4, 0.0))
    value, sse, gradients = reference_step(weights, source, target=target, loss=loss)
    workspace = Workspace.like(weights, rows=16, rule=loss.rule)
    assert decode.uses_kernels(source)
    results = [nested_step(weights, source, target=target, loss=loss, workspace=workspace) for _ in range(2)]
    assert relative(results[0].loss, value) < tolerance
    assert relative(results[0].sse, sse) < tolerance
    for name, array in results[0].gradients.tensors().items():
        assert relative(array, gradients.tensors()[name]) < tolerance, name
    assert torch.equal(results[0].loss, results[1].loss)


def main(device):
    for dtype in TOLERANCE:
        check_operations(dtype, device)
    for activation in ("topk", "batchtopk"):
        check_step(activation, torch.float64, device, 1e-10)
        check_step(activation, torch.float32, device, 2e-5)
    print("equal")


main(sys.argv[1])
