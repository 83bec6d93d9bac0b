"""Activations go from torch to the disk and back bit by bit."""

import numpy as np
import pytest
import torch

from cache.format.dtypes import TORCH_DTYPES, read_as, to_array, to_stored, to_tensor


@pytest.mark.parametrize("dtype", TORCH_DTYPES)
def test_stored_rows_are_torchs_own_rounding_and_their_error_is_exact(dtype: str) -> None:
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    stored = to_stored(rows, dtype)
    rounded = rows.to(TORCH_DTYPES[dtype])
    assert torch.equal(stored.values, rounded)
    expected = (rows.double() - rounded.double()).square().sum(dim=1)
    np.testing.assert_allclose(stored.error, expected.numpy(), rtol=1e-12)
    assert stored.finite
    assert stored.finite_rows.all()


def test_every_pattern_of_bits_of_bfloat16_comes_back() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 256)
    assert np.array_equal(to_array(to_tensor(bits, "bfloat16")), bits)


def test_what_is_not_finite_is_found_row_by_row() -> None:
    rows = torch.zeros(3, 2)
    rows[1, 0] = torch.nan
    stored = to_stored(rows, "float16")
    assert not stored.finite
    assert stored.finite_rows.tolist() == [True, False, True]


def test_int8_rows_wait_as_bfloat16() -> None:
    assert [read_as(dtype) for dtype in ("int8", "bfloat16", "float32")] == ["bfloat16", "bfloat16", "float32"]
