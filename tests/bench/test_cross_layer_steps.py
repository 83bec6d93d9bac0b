"""The dense step of the bench changes weights as ours does: it is the same task."""

from pathlib import Path

import pytest
import torch

SUPPORT = Path(__file__).parents[2] / "bench" / "support"


def test_our_step_and_the_dense_step_give_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SUPPORT))
    import cross_layer_steps
    import step_systems

    problem = step_systems.problem("64,12,4,8,32")
    before = [layer.decoder.clone() for layer in cross_layer_steps.layers_of(problem)]
    ours = cross_layer_steps.nestcoder_step(problem, dimension_balance=0.0)
    dense = cross_layer_steps.Dense(problem)
    for _ in range(3):
        ours()
        dense()
    for first, state, own in zip(before, ours.state.layers, dense.trained, strict=True):
        weights = state.weights
        assert (weights.W_dec - first).abs().max() > 1e-5
        torch.testing.assert_close(weights.W_enc, own.encoder.detach(), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(weights.b_enc, own.bias.detach(), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(weights.W_dec, own.decoder.detach(), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(weights.b_dec[: problem.sizes[1]], own.b_dec.detach(), atol=2e-5, rtol=1e-4)
