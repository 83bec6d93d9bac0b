"""The held-out FVU of a training against its definition in float64, with and without a weight for each dimension."""

from pathlib import Path

import pytest
import torch

from cache.reader import CacheReader
from train.arrays.parameters import random_parameters
from train.arrays.units import units_of
from train.objective import NestedLoss, equal_weights
from train.record.held_out_fvu import HeldOut, held_out_fvu
from transcoder.rules.topk import TopK

PREFIXES = (16, 48)


@pytest.fixture
def held_out(small_cache: Path) -> HeldOut:
    reader = CacheReader.open(small_cache)
    found = HeldOut.read(reader, units_of(reader, "mlp_in"), rows=100, view="mlp_in", device="cpu")
    assert found is not None
    return found


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_it_is_its_definition(held_out: HeldOut, weighted: bool, skip: bool) -> None:
    weights = random_parameters(12, 8, dict_size=48, skip=skip, seed=1)
    scale = torch.linspace(0.5, 2, 8) if weighted else None
    loss = NestedLoss(PREFIXES, TopK(5), 1.0, equal_weights(PREFIXES), dimension_scale=scale)
    found = held_out_fvu(weights, held_out, nested=loss)

    x, y = held_out.source.double(), held_out.target.double()
    c = 1.0 if scale is None else scale.double()
    arrays = {name: array.double() for name, array in weights.tensors().items()}
    pre = x @ arrays["W_enc"].T + arrays["b_enc"]
    code = pre.relu() * torch.zeros_like(pre).scatter_(1, pre.topk(5).indices, 1.0)
    base = arrays["b_dec"] + (x @ arrays["W_skip"] if skip else 0)
    for value, prefix in zip(found, PREFIXES, strict=True):
        predicted = base + code[:, :prefix] @ arrays["W_dec"][:prefix]
        expected = (c * (y - predicted)).square().sum() / (c * (y - y.mean(dim=0))).square().sum()
        assert value == pytest.approx(float(expected), rel=1e-5)


def test_special_tokens_and_rows_beyond_the_limit_are_left_out(small_cache: Path, held_out: HeldOut) -> None:
    split = CacheReader.open(small_cache).split("held_out")
    assert len(held_out.source) == int(split.is_ordinary(split.tokens[:100]).sum()) == 98
    assert float(held_out.source.abs().max()) < 10


def test_without_an_ordinary_row_there_is_nothing_to_measure(small_cache: Path) -> None:
    reader = CacheReader.open(small_cache)
    assert HeldOut.read(reader, units_of(reader, "mlp_in"), rows=1, view="mlp_in", device="cpu") is None
