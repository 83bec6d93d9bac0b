"""What exceeds a threshold, and nothing else."""

import torch

from transcoder.rules.threshold import select_above


def test_above_keeps_what_exceeds_the_threshold():
    pre = torch.randn(5, 40)
    selection = select_above(pre, 0.5)
    assert torch.equal(selection.dense(40), torch.where(pre > 0.5, pre, 0.0))
