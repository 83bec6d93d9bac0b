"""The interface of every rule: selections that agree, floors, files, and the defaults."""

from typing import Any

import pytest
import torch

from transcoder.rules.registry import RULES, make_rule
from transcoder.rules.relu import ReLU
from transcoder.rules.rule import Rule, is_count, is_finite_float

DICT_SIZE = 24


def rule_of(name: str) -> Rule:
    """The rule of evaluation: calibrated on rows, with its own thresholds if it has them."""
    made = make_rule(name, 3) if RULES[name].trains else ReLU()
    if made.trains_threshold:
        made = made.with_threshold(torch.linspace(0.1, 1, DICT_SIZE))
    pre = torch.randn(64, DICT_SIZE, generator=torch.Generator().manual_seed(9))
    return made.calibrated([pre[:32], pre[32:]], rows=64)


@pytest.fixture(params=sorted(RULES))
def rule(request: pytest.FixtureRequest) -> Rule:
    return rule_of(request.param)


@pytest.fixture
def pre() -> torch.Tensor:
    return torch.randn(11, DICT_SIZE, generator=torch.Generator().manual_seed(4))


def test_selections_are_sparse_codes_of_positive_values_ascending_in_a_row(rule: Rule, pre: torch.Tensor) -> None:
    code = rule(pre)
    assert torch.equal(code.dense(DICT_SIZE), rule.select(pre).dense(DICT_SIZE))
    assert code.row_count == len(pre)
    dense = code.dense(DICT_SIZE)
    assert torch.equal(dense, torch.where(dense > 0, pre, 0.0))
    for row in range(len(pre)):
        assert (code.features[code.offsets[row] : code.offsets[row + 1]].diff() > 0).all()
    if rule.row_limit is not None:
        assert (code.offsets.diff() <= rule.row_limit).all()


def test_rows_do_not_depend_on_one_another_under_evaluation(rule: Rule, pre: torch.Tensor) -> None:
    alone = torch.cat([rule.select(row[None]).dense(DICT_SIZE) for row in pre])
    assert torch.equal(alone, rule.select(pre).dense(DICT_SIZE))


def test_a_rule_selects_the_same_among_candidates_as_among_all(rule: Rule, pre: torch.Tensor) -> None:
    """The candidates: all positive pre-activations, among which are all that fire."""
    candidates = ReLU().select(pre)
    assert torch.equal(rule.among(candidates).dense(DICT_SIZE), rule.select(pre).dense(DICT_SIZE))


def test_a_floor_is_what_a_value_must_exceed(rule: Rule, pre: torch.Tensor) -> None:
    floor = rule.floor(torch.zeros(DICT_SIZE))
    if floor is None:
        assert rule.row_limit is not None, "the prefilter needs one of the two"
    else:
        assert torch.equal(rule.select(pre).dense(DICT_SIZE), torch.where(pre > floor, pre, 0.0))


def test_a_rule_is_read_back_from_its_keys_and_arrays(rule: Rule, pre: torch.Tensor) -> None:
    config = rule.as_config()
    cls = type(rule)
    assert cls.wrong_keys(config) == []
    arrays = rule.arrays()
    assert {name: tuple(array.shape) for name, array in arrays.items()} == cls.array_shapes(
        config | {"dict_size": DICT_SIZE}
    )
    again = cls.from_config(config, arrays)
    assert torch.equal(again.select(pre).dense(DICT_SIZE), rule.select(pre).dense(DICT_SIZE))


def test_what_only_some_rules_can_do_is_not_silently_skipped() -> None:
    class Plain(Rule):
        """The defaults."""

        name = "plain"
        scope = "batch"

        def select(self, pre: torch.Tensor) -> Any:
            return None

    rule = Plain.from_settings(5, jumprelu_bandwidth=1.0)
    assert rule.kept(100) == 500
    assert rule.row_limit is None
    assert rule.calibrated([], rows=0) is rule
    assert rule.as_config() == {"top_k": 5}
    assert Plain.wrong_keys({"top_k": 0}) == ["top_k"]
    for missing in (
        lambda: rule.with_threshold(torch.zeros(1)), lambda: rule.penalty(torch.zeros(())), lambda: rule.among(None)
    ):  # fmt: skip
        with pytest.raises((NotImplementedError, TypeError)):
            missing()


@pytest.mark.parametrize(("value", "count", "finite"), [
    (1, True, False), (0, False, False), (True, False, False), (1 << 31, False, False), ("1", False, False),
    (1.5, False, True), (float("nan"), False, False), (float("inf"), False, False), (None, False, False),
])  # fmt: skip
def test_numbers_of_a_config(value: object, count: bool, finite: bool) -> None:
    assert is_count(value) == count
    assert is_finite_float(value) == finite
