"""The threshold of batchtopk, from training rows."""

from cache.reader import CacheReader
from train.arrays.parameters import random_parameters
from train.threshold import calibrated_rule
from transcoder.rules.batchtopk import BatchTopK


def test_fewer_firing_entries_than_wanted_are_all_kept_by_the_threshold(special_cache, small_cache):
    """If fewer than top_k a row fire, no threshold above 0 keeps as many."""
    reader = CacheReader.open(small_cache)
    weights = random_parameters(12, 8, dict_size=4)
    weights.b_enc.fill_(-1e3)
    weights.b_enc[0] = 1e3
    given = {"view": "mlp_in", "device": "cpu"}
    assert calibrated_rule(weights, BatchTopK(2), reader, **given).threshold == 0.0
    assert calibrated_rule(weights, BatchTopK(1), reader, **given).threshold > 0.0
    assert calibrated_rule(weights, BatchTopK(1), CacheReader.open(special_cache), **given).threshold == 0.0
