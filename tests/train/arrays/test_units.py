"""Training units and back: exact in float64, for any scale of the source."""

from pathlib import Path

import pytest
import torch

from cache.reader import CacheReader
from train.arrays.parameters import Parameters, random_parameters
from train.arrays.units import SourceScaling, units_of


@pytest.mark.parametrize("scaling", ["dimension", "whole"])
def test_folding_is_exact(small_cache: Path, scaling: SourceScaling) -> None:
    units = units_of(CacheReader.open(small_cache), "mlp_in", scaling)
    trained = random_parameters(12, 8, dict_size=32, skip=True, dtype=torch.float64)
    assert trained.W_skip is not None
    trained.W_skip.copy_(torch.randn(12, 8, generator=torch.Generator().manual_seed(1)))
    trained.b_enc.copy_(torch.linspace(-1, 1, 32))
    trained.b_dec.copy_(torch.linspace(-2, 2, 8))
    source = torch.randn(50, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    scale = torch.as_tensor(units.source_scale, dtype=torch.float64)

    inside, code = reconstruction(trained, source * scale)
    outside, folded_code = reconstruction(units.folded(trained), source)
    torch.testing.assert_close(outside * units.target_scale, inside, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(folded_code * units.target_scale, code, rtol=1e-12, atol=1e-12)
    assert torch.equal(units.folded(trained).W_dec, trained.W_dec)


def reconstruction(weights: Parameters, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By the definition, with the four largest features of a row."""
    pre = source @ weights.W_enc.T + weights.b_enc
    code = pre.relu() * (pre >= pre.topk(4, dim=1).values[:, -1:])
    assert weights.W_skip is not None
    return code @ weights.W_dec + source @ weights.W_skip + weights.b_dec, code


@pytest.mark.parametrize("view", ["mlp_in", "ln2_normalized"])
def test_every_dimension_of_the_source_has_variance_one(small_cache: Path, view: str) -> None:
    reader = CacheReader.open(small_cache, view=view)
    units = units_of(reader, view)
    split = reader.split("train")
    rows = split.rows(slice(0, len(split)))
    ordinary = torch.from_numpy(split.is_ordinary(rows.tokens))
    source = units.source(rows.source[ordinary]).double()
    torch.testing.assert_close(source.var(dim=0, correction=0), torch.ones(12).double(), rtol=1e-4, atol=0)
    target = units.target(rows.target[ordinary]).double()
    assert float(target.var(dim=0, correction=0).mean()) == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(units.target_variance, target.var(dim=0, correction=0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_rows_of_every_dtype_are_scaled_in_float32_without_changing_them(small_cache: Path, dtype: torch.dtype) -> None:
    units = units_of(CacheReader.open(small_cache), "mlp_in")
    rows = torch.randn(9, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    given = rows.clone()
    assert isinstance(units.source_scale, torch.Tensor)
    assert torch.equal(units.source(rows), rows.float() * units.source_scale)
    assert torch.equal(units.target(rows[:, :8]), rows[:, :8].float() * units.target_scale)
    assert torch.equal(rows, given)
