"""A dictionary against the definition in five lines of float64."""

from functools import partial

import torch

from transcoder.dictionary import Dictionary
from transcoder.sparse_code import select_topk
from transcoder.weights import random_weights


def small(*, skip: bool = False) -> Dictionary:
    weights = random_weights(6, 5, dict_size=32, skip=skip, seed=3, dtype=torch.float64)
    return Dictionary("small", weights, partial(select_topk, top_k=4), prefixes=(8, 32), top_k=4)


def test_every_prefix_is_bias_plus_its_own_features() -> None:
    dictionary, source = small(), torch.randn(7, 6, dtype=torch.float64)
    dictionary.weights.b_dec.add_(0.3)
    selection = dictionary.active(source)
    pre = source @ dictionary.weights.W_enc + dictionary.weights.b_enc
    kept = torch.zeros_like(pre).scatter_(1, pre.topk(4).indices, 1.0)
    code = pre.relu() * kept
    for place, prefix in enumerate(dictionary.prefixes):
        expected = dictionary.weights.b_dec + code[:, :prefix] @ dictionary.weights.W_dec[:prefix]
        torch.testing.assert_close(dictionary.reconstruct(selection, source)[:, place], expected)


def test_a_skip_is_part_of_every_prefix() -> None:
    dictionary, source = small(skip=True), torch.randn(7, 6, dtype=torch.float64)
    before = dictionary.reconstruct(dictionary.active(source), source)
    assert dictionary.weights.W_skip is not None
    dictionary.weights.W_skip.fill_(0.5)
    after = dictionary.reconstruct(dictionary.active(source), source)
    torch.testing.assert_close(after - before, (source.sum(1, keepdim=True) * 0.5)[:, None].expand_as(after))


def test_groups_are_what_each_prefix_adds() -> None:
    assert small().groups == (range(8), range(8, 32))


def test_another_top_k_selects_as_many() -> None:
    selection = small().at_top_k(2).active(torch.randn(7, 6, dtype=torch.float64))
    assert selection.offsets.diff().tolist() == [2] * 7
