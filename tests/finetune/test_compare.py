"""The share of the features' tokens that stayed, by hand."""

import numpy as np

from finetune.compare import kept_tokens


def test_kept_tokens_are_counted_over_features_that_fire_both_times() -> None:
    before = np.array([[1, 2, 3], [4, -1, -1], [5, 6, -1], [-1, -1, -1]])
    after = np.array([[1, 3, 9], [7, 4, -1], [-1, -1, -1], [8, -1, -1]])
    found = kept_tokens(before, after)
    assert found == {"features_compared": 2, "top_token_kept": 0.5, "tokens_shared": (2 / 3 + 1) / 2}
    assert kept_tokens(before[3:], after[3:])["top_token_kept"] is None
