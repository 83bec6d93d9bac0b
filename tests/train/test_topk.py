import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.reader import CacheReader
from train.parameters import random_parameters
from train.threshold import calibrated_rule
from transcoder.rules.batchtopk import BatchTopK, select_batchtopk
from transcoder.rules.threshold import select_above
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


def test_above_keeps_what_exceeds_the_threshold():
    pre = torch.randn(5, 40)
    selection = select_above(pre, 0.5)
    assert torch.equal(selection.dense(40), torch.where(pre > 0.5, pre, 0.0))


def test_fewer_firing_entries_than_wanted_are_all_kept_by_the_threshold(special_cache, small_cache):
    """Where fewer fire than top_k a row, no threshold above 0 keeps as many."""
    reader = CacheReader.open(small_cache)
    weights = random_parameters(12, 8, dict_size=4)
    weights.b_enc.fill_(-1e3)
    weights.b_enc[0] = 1e3
    given = {"view": "mlp_in", "device": "cpu"}
    assert calibrated_rule(weights, BatchTopK(2), reader, **given).threshold == 0.0
    assert calibrated_rule(weights, BatchTopK(1), reader, **given).threshold > 0.0
    assert calibrated_rule(weights, BatchTopK(1), CacheReader.open(special_cache), **given).threshold == 0.0
