"""Batch top-k keeps the largest of the batch."""

import pytest
import torch

from transcoder.rules.batchtopk import select_batchtopk


@pytest.mark.parametrize("columns", [48, 400])
def test_batchtopk_keeps_the_largest_of_the_batch(columns):
    pre = torch.randn(9, columns, dtype=torch.float64)
    pre[4] -= 100
    selection = select_batchtopk(pre, count=27)
    kth = pre.flatten().sort(descending=True).values[26]
    assert torch.equal(selection.dense(columns), torch.where(pre >= kth, pre, 0).relu())
    lengths = selection.offsets.diff()
    assert lengths[4] == 0
    assert lengths.sum() == 27
    assert lengths.unique().numel() > 1
