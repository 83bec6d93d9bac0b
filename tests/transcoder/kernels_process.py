"""Run under TRITON_INTERPRET=1: the kernels against PyTorch, and a whole step through them against the reference."""

import sys
from itertools import pairwise

import torch

from train.arrays.parameters import random_parameters
from train.arrays.workspace import Workspace
from train.loss import nested_step
from train.objective import NestedLoss
from train.reference import reference_step
from transcoder import decode, kernels
from transcoder.rules.batchtopk import select_batchtopk
from transcoder.rules.registry import make_rule

PREFIXES = (8, 20, 21, 40, 64)
STEP_PREFIXES = (4, 10, 11, 20, 32)
TOLERANCE = {torch.float64: 1e-14, torch.float32: 3e-7, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def relative(value, expected):
    return float((value.double() - expected.double()).norm() / expected.double().norm())


def check_operations(dtype, device):
    """Width 300: more than one block, and not a multiple of it. Rows of unequal length, some bags empty."""
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


def check_skewed(dtype, device):
    """Bags of 700, 256 and 257 entries in four windows of 256, among short and empty ones; the same bits every time."""
    torch.manual_seed(2)
    counts = torch.tensor([0, 3, 700, 0, 0, 1, 256, 257, 2, 0], device=device)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
    active = int(counts.sum())
    assert active > 4 * kernels._WINDOW
    table = torch.randn(50, 40, device=device).to(dtype)
    index = torch.randint(50, (active,), dtype=torch.int32, device=device)
    weight = torch.randn(active, device=device).to(dtype)
    rows = weight.double()[:, None] * table.double()[index]
    expected = torch.stack([bag.sum(dim=0) for bag in rows.split(counts.tolist())])
    found = []
    for _ in range(2):
        out = torch.full_like(expected, 7.0, dtype=torch.promote_types(dtype, torch.float32))
        kernels.weighted_sums_(out, table, index, weight=weight, offsets=offsets)
        found.append(out)
    unit = torch.randn_like(found[0]).to(dtype)
    along = torch.randn(len(unit), device=device, dtype=found[0].dtype)
    less = torch.empty_like(found[0])
    kernels.weighted_sums_(less, table, index, weight=weight, offsets=offsets, less=(along, unit))
    assert relative(less, expected - along.double()[:, None] * unit.double()) < TOLERANCE[dtype]
    assert relative(found[0], expected) < TOLERANCE[dtype]
    assert relative(found[0], decode.weighted_sums(table, index, weight, offsets=offsets)) < 10 * TOLERANCE[dtype]
    assert torch.equal(*found)


def check_far_rows(device):
    """A table of more than 2^31 elements (4.3 GB), of which only two rows are touched."""
    width = 128
    table = torch.empty(2**31 // width + 2, width, dtype=torch.float16, device=device)
    index = torch.tensor([len(table) - 1, 0], dtype=torch.int32, device=device)
    table[index] = torch.tensor([[1.0], [2.0]], dtype=table.dtype, device=device)
    weight = torch.tensor([3.0, 5.0], dtype=table.dtype, device=device)
    out = torch.empty(2, width, device=device)
    kernels.weighted_sums_(out, table, index, weight=weight, offsets=index.new_tensor([0, 1, 2]))
    assert out.tolist() == [[3.0] * width, [10.0] * width]
    grad_sums = torch.ones(1, width, dtype=table.dtype, device=device)
    assert kernels.dots(grad_sums, table, bag=index.new_zeros(2), feature=index).tolist() == [128.0, 256.0]


def check_grad_sums(given):
    """Plain, and with a scale for each dimension that varies by a factor of fifty."""
    left = torch.randn_like(given[:, 0])
    weights = torch.tensor([0.1, 0.2, 0.0, 0.4, 0.3], dtype=given.dtype, device=given.device)
    errors = given.cumsum(dim=1) - left[:, None]
    tolerance = TOLERANCE[given.dtype]
    for scale in (None, torch.linspace(0.1, 5, given.shape[2], dtype=given.dtype, device=given.device)):
        counts = torch.ones_like(left[0]) if scale is None else scale.square()
        expected = (errors * weights[:, None] * counts).flip(1).cumsum(dim=1).flip(1)
        sums = given.clone()
        squares, residual = kernels.grad_sums_(sums, left, weights=weights, scale=scale)
        assert relative(squares, (errors.square() * counts).sum(dim=2)) < tolerance
        assert relative(residual, errors[:, -1]) < tolerance
        assert relative(sums, expected) < tolerance


def check_step(activation, dtype, device, tolerance):
    torch.manual_seed(1)
    drawn = random_parameters(12, 10, dict_size=32, skip=True, seed=1, dtype=dtype)
    weights = type(drawn)(**{name: array.to(device) for name, array in drawn.tensors().items()})
    source, target = torch.randn(2, 7, 12, dtype=dtype, device=device)
    target = target[:, :10]
    loss = NestedLoss(
        STEP_PREFIXES,
        make_rule(activation, 6),
        7.5,
        prefix_weights=(0.1, 0.2, 0.3, 0.4, 0.0),
        dimension_scale=torch.linspace(0.1, 5, 10, dtype=dtype, device=device),
    )
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
        check_skewed(dtype, device)
    check_far_rows(device)
    for activation in ("topk", "batchtopk"):
        check_step(activation, torch.float64, device, 1e-10)
        check_step(activation, torch.float32, device, 2e-5)
    print("equal")


main(sys.argv[1])
