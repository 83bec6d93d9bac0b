"""Top-k against a full sort, ties included."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transcoder.rules.topk import largest, select_topk


@given(
    rows=st.integers(1, 5), columns=st.sampled_from([7, 32, 160, 512]), count=st.integers(1, 7), seed=st.integers(0, 99)
)
@settings(max_examples=60, deadline=None)
def test_largest_agrees_with_a_full_sort(rows, columns, count, seed):
    # Few distinct values: ties are the hard case for a selection in two stages.
    table = torch.randint(0, 6, (rows, columns), generator=torch.Generator().manual_seed(seed)).double()
    values, places = largest(table, count)
    assert torch.equal(values.sort(dim=1, descending=True).values, table.sort(dim=1, descending=True).values[:, :count])
    assert torch.equal(values, table.gather(1, places))
    assert all(len(set(row.tolist())) == count for row in places)


def test_topk_keeps_the_largest_of_each_row_rectified_and_ascending():
    pre = torch.randn(6, 64, dtype=torch.float64)
    pre[0] = -pre[0].abs()
    selection = select_topk(pre, top_k=5)
    kth = pre.sort(dim=1, descending=True).values[:, 4:5]
    assert torch.equal(selection.dense(64), torch.where(pre >= kth, pre, 0).relu())
    features = selection.features.view(6, 5)
    assert bool((features.diff(dim=1) > 0).all())
    assert selection.offsets.tolist() == list(range(0, 31, 5))
