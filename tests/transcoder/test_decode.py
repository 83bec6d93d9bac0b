"""Bags, running sums and gradients by hand, each against dense arithmetic in float64 or autograd."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transcoder import decode as module
from transcoder.decode import (
    activation_gradients,
    bag_sums,
    bags_of,
    decode_prefixes,
    grad_sums_,
    reverse_running_sum_,
    running_sum_,
    transpose,
    weighted_sums,
    weighted_sums_into,
)
from transcoder.rules.topk import select_topk
from transcoder.sparse_code import SparseCode

ROWS, DICT_SIZE, WIDTH, PREFIXES = 9, 20, 5, (4, 12, 20)
DOUBLE = torch.float64


@pytest.fixture
def code() -> SparseCode:
    """Every third row fires nowhere."""
    pre = torch.randn(ROWS, DICT_SIZE, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    pre[::3] = -1.0
    return select_topk(pre, top_k=6)


@pytest.fixture
def decoder() -> torch.Tensor:
    return torch.randn(DICT_SIZE, WIDTH, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))


def by_group(dense: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
    """What each group of features adds to each row, from the dense code."""
    starts = (0, *PREFIXES[:-1])
    return torch.stack([dense[:, a:b] @ decoder[a:b] for a, b in zip(starts, PREFIXES, strict=True)], dim=1)


def test_bags_are_the_groups_of_every_row(code: SparseCode, decoder: torch.Tensor) -> None:
    bags = bags_of(code, PREFIXES)
    rows = code.rows().long()
    group = torch.bucketize(code.features, torch.tensor(PREFIXES), right=True)
    assert torch.equal(bags.bag.long(), rows * len(PREFIXES) + group)
    assert (bags.bag.diff() >= 0).all()
    assert torch.equal(bags.offsets.diff(), bags.bag.bincount(minlength=ROWS * len(PREFIXES)).int())
    sums = bag_sums(code, bags, decoder).unflatten(0, (ROWS, -1))
    torch.testing.assert_close(sums, by_group(code.dense(DICT_SIZE), decoder))


def test_every_prefix_is_the_base_and_its_own_features(code: SparseCode, decoder: torch.Tensor) -> None:
    dense = code.dense(DICT_SIZE)
    for base in (torch.ones(WIDTH, dtype=DOUBLE), torch.randn(ROWS, WIDTH, dtype=DOUBLE)):
        found = decode_prefixes(code, decoder, base, prefixes=PREFIXES)
        expected = torch.stack([base + dense[:, :prefix] @ decoder[:prefix] for prefix in PREFIXES], dim=1)
        torch.testing.assert_close(found, expected)


def test_the_transposed_index_lists_the_rows_of_every_feature(code: SparseCode) -> None:
    found = transpose(code, DICT_SIZE)
    rows = code.rows()[found.order]
    dense = code.dense(DICT_SIZE)
    for feature in range(DICT_SIZE):
        own = slice(int(found.offsets[feature]), int(found.offsets[feature + 1]))
        assert (code.features[found.order[own]] == feature).all()
        assert set(dense[:, feature].nonzero().flatten().tolist()) <= set(rows[own].tolist())
        assert (rows[own].diff() > 0).all()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.integers(1, 4))
def test_sums_into_an_array_are_those_of_the_definition(lengths: list[int], block: int) -> None:
    """Also with incomplete blocks, empty sums, and a product that is subtracted."""
    generator = torch.Generator().manual_seed(sum(lengths))
    table = torch.randn(7, 3, dtype=DOUBLE, generator=generator)
    index = torch.randint(0, 7, (sum(lengths),), generator=generator, dtype=torch.int32)
    weight = torch.randn(len(index), dtype=DOUBLE, generator=generator)
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    expected = torch.zeros(len(lengths), 3, dtype=DOUBLE).index_add_(0, rows, weight[:, None] * table[index.long()])
    torch.testing.assert_close(weighted_sums(table, index, weight, offsets=offsets), expected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK", block)
        out = torch.full_like(expected, torch.nan)
        weighted_sums_into(out, table, index, weight=weight, offsets=offsets)
        torch.testing.assert_close(out, expected)
        if len(index):
            along = torch.randn(len(lengths), dtype=DOUBLE, generator=generator)
            unit = torch.randn(len(lengths), 3, dtype=DOUBLE, generator=generator)
            weighted_sums_into(out, table, index, weight=weight, offsets=offsets, less=(along, unit))
            torch.testing.assert_close(out, expected - along[:, None] * unit)


def test_running_sums_go_forwards_and_backwards() -> None:
    sums = torch.randn(3, 4, 2, dtype=DOUBLE)
    weights = (0.5, 2.0, 1.0, 0.25)
    torch.testing.assert_close(running_sum_(sums.clone()), sums.cumsum(dim=1))
    weighted = sums * torch.tensor(weights)[:, None]
    torch.testing.assert_close(reverse_running_sum_(sums.clone(), weights), weighted.flip(1).cumsum(1).flip(1))


def test_gradients_by_hand_are_those_of_autograd(code: SparseCode, decoder: torch.Tensor) -> None:
    """Of ``sum over prefixes of weight * squared error``, down to the activations."""
    target = torch.randn(ROWS, WIDTH, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    weights = (0.5, 1.0, 2.0)
    values = code.values.clone().requires_grad_()
    learned = decoder.clone().requires_grad_()
    traced = SparseCode(values, code.features, code.offsets)
    predicted = decode_prefixes(traced, learned, torch.zeros(WIDTH, dtype=DOUBLE), prefixes=PREFIXES)
    squares = (predicted - target[:, None]).square().sum(dim=(0, 2))
    (squares * torch.tensor(weights)).sum().backward()

    with torch.no_grad():
        bags = bags_of(code, PREFIXES)
        sums = bag_sums(code, bags, decoder).unflatten(0, (ROWS, -1))
        sse, residual = grad_sums_(sums, target, weights=weights)
        found = activation_gradients(code, bags, decoder, grad_sums=sums.flatten(0, 1))
    torch.testing.assert_close(sse, squares.detach())
    torch.testing.assert_close(residual, predicted[:, -1].detach() - target)
    torch.testing.assert_close(found, values.grad)
