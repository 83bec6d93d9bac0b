"""Logit effects against their definition."""

import numpy as np
import pytest
import torch

from cache.storage.unembedding import Unembedding
from evaluate.features.effects.logits import HISTOGRAM_BINS, logit_effects


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
        edges = np.linspace(effect.min(), effect.max(), HISTOGRAM_BINS + 1)
        assert found["logit_histogram"][feature].tolist() == np.histogram(effect, edges)[0].tolist()


def test_a_feature_that_moves_no_logit_has_a_histogram_too() -> None:
    W_U = torch.ones(30, 8)
    found = logit_effects(torch.ones(1, 8), Unembedding(W_U, torch.ones(8), centred=False, origin="here"), 4)
    assert found["logit_histogram"].sum() == 30
