"""Logit effects against their definition, and the gain of a norm found from what it computes."""

import numpy as np
import pytest
import torch
from torch import nn

from evaluate.features.effects.logits import Unembedding, gain_of, logit_effects


@pytest.mark.parametrize("centred", [True, False])
def test_effects_are_the_direct_path_to_the_logits(centred: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    W_dec, W_U, gain = (torch.randn(*shape, generator=generator) for shape in ((5, 8), (30, 8), (8,)))
    found = logit_effects(W_dec, Unembedding(W_U, gain, centred=centred, origin="here"), 4)
    for feature in range(5):
        direction = W_dec[feature] - (W_dec[feature].mean() if centred else 0)
        effect = torch.stack([(gain * direction) @ W_U[token] for token in range(30)])
        effect = (effect - effect.mean()).numpy()
        assert found["raised_token"][feature].tolist() == np.argsort(-effect)[:4].tolist()
        assert found["lowered_token"][feature].tolist() == np.argsort(effect)[:4].tolist()
        np.testing.assert_allclose(found["lowered_logit"][feature], np.sort(effect)[:4], rtol=1e-4)


def test_the_gain_of_both_kinds_of_norm_is_found() -> None:
    layer_norm = nn.LayerNorm(64)
    nn.init.uniform_(layer_norm.weight, 0.5, 2)
    nn.init.uniform_(layer_norm.bias)
    gain, centred = gain_of(layer_norm, 64)
    assert centred
    torch.testing.assert_close(gain, layer_norm.weight.detach(), rtol=1e-3, atol=1e-3)

    rms = nn.RMSNorm(64, eps=1e-6)
    nn.init.uniform_(rms.weight, 0.5, 2)
    gain, centred = gain_of(rms, 64)
    assert not centred
    torch.testing.assert_close(gain, rms.weight.detach(), rtol=1e-3, atol=1e-3)


def test_another_module_is_no_norm() -> None:
    with pytest.raises(ValueError, match="neither"):
        gain_of(nn.Linear(16, 16), 16)
