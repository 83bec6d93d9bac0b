"""The change of variables between a norm's output before and after its gain and bias."""

import numpy as np
import torch

from common.norm import NormAffine


def test_undo_inverts_apply_and_moments_are_those_of_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    norm = NormAffine(torch.randn(6, generator=generator), torch.randn(6, generator=generator))
    x = torch.randn(50, 6, generator=generator)
    consumed = norm.apply(x)
    torch.testing.assert_close(consumed, x * norm.gain + norm.bias)
    torch.testing.assert_close(norm.undo(consumed), x, rtol=1e-4, atol=1e-5)
    rows = consumed.double().numpy()
    mean, variance = norm.undo_moments(rows.mean(axis=0), rows.var(axis=0))
    np.testing.assert_allclose(mean, x.double().numpy().mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(variance, x.double().numpy().var(axis=0), rtol=1e-4)


def test_a_cache_may_store_no_bias_and_no_gain() -> None:
    assert NormAffine.of_arrays({}) is None
    norm = NormAffine.of_arrays({"gain": np.array([2.0, 0.0], np.float32)})
    assert norm is not None
    assert norm.bias.tolist() == [0, 0]
    assert not norm.is_invertible
