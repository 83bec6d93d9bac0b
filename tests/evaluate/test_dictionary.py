"""A dictionary against the definition in five lines of float64."""

import torch

from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


def small(*, skip: bool = False) -> Transcoder:
    arrays = random_arrays(6, 5, dict_size=32, skip=skip, seed=3, dtype=torch.float64)
    return Transcoder(**arrays, rule=TopK(4), prefixes=(8, 32))


def test_every_prefix_is_bias_plus_its_own_features() -> None:
    dictionary, source = small(), torch.randn(7, 6, dtype=torch.float64)
    dictionary.b_dec.add_(0.3)
    selection = dictionary.sparse_code(source)
    pre = source @ dictionary.W_enc.T + dictionary.b_enc
    kept = torch.zeros_like(pre).scatter_(1, pre.topk(4).indices, 1.0)
    code = pre.relu() * kept
    for place, prefix in enumerate(dictionary.prefixes):
        expected = dictionary.b_dec + code[:, :prefix] @ dictionary.W_dec[:prefix]
        torch.testing.assert_close(dictionary.reconstruct(selection, source)[:, place], expected)


def test_a_skip_is_part_of_every_prefix() -> None:
    dictionary, source = small(skip=True), torch.randn(7, 6, dtype=torch.float64)
    before = dictionary.reconstruct(dictionary.sparse_code(source), source)
    assert dictionary.W_skip is not None
    dictionary.W_skip.fill_(0.5)
    after = dictionary.reconstruct(dictionary.sparse_code(source), source)
    torch.testing.assert_close(after - before, (source.sum(1, keepdim=True) * 0.5)[:, None].expand_as(after))


def test_groups_are_what_each_prefix_adds() -> None:
    assert small().groups == (range(8), range(8, 32))


def test_another_top_k_selects_as_many() -> None:
    selection = small().at_top_k(2).sparse_code(torch.randn(7, 6, dtype=torch.float64))
    assert selection.offsets.diff().tolist() == [2] * 7
