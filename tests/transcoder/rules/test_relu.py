"""ReLU keeps every positive pre-activation, and needs no settings or arrays of its own."""

import torch

from transcoder.rules.relu import ReLU
from transcoder.rules.rule import Rule
from transcoder.rules.threshold import select_above


def test_relu_keeps_positive_values_and_sets_others_to_0() -> None:
    pre = torch.randn(6, 30, generator=torch.Generator().manual_seed(0), requires_grad=True)
    code = ReLU()(pre)
    assert torch.equal(code.dense(30), pre.relu())
    code.values.sum().backward()
    assert torch.equal(pre.grad, (pre > 0).float())


def test_its_floor_is_0_and_candidates_that_are_not_positive_are_left_out() -> None:
    rule = ReLU()
    assert rule.floor(torch.ones(4)).tolist() == [0.0] * 4
    pre = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(rule.among(select_above(pre, -0.5)).dense(12), pre.relu())


def test_a_file_stores_only_its_name() -> None:
    assert ReLU().as_config() == {}
    assert ReLU.wrong_keys({"top_k": "nonsense"}) == []
    assert isinstance(ReLU.from_config({}, {}), ReLU)
    assert ReLU().row_limit is None
    assert isinstance(ReLU(), Rule)
