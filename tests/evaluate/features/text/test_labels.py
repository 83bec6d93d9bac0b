"""Labels say what was counted."""

from dataclasses import replace

import numpy as np
import pytest

from evaluate.features.evidence import Evidence
from evaluate.features.text.labels import NEVER, label_of, quoted, visible


@pytest.fixture
def one_feature() -> Evidence:
    arrays = {"firings": np.array([100]), "text_token": np.array([1, 2, 3, 4])}
    for name in ("on", "before", "after"):
        arrays[f"{name}_token"] = np.array([[1, 2, 3, -1]])
        arrays[f"{name}_share"] = np.array([[0.1, 0.05, 0.05, 0.0]])
        arrays[f"{name}_lift"] = np.array([[9.0, 1.0, 1.0, 0.0]])
    return Evidence({}, arrays, {1: " import", 2: "\n", 3: "x", 4: " numpy"})


def _with(evidence: Evidence, **arrays: list[list[float]]) -> Evidence:
    return replace(evidence, arrays={**evidence.arrays, **{name: np.array(array) for name, array in arrays.items()}})


def test_a_feature_of_one_token_is_named_after_it(one_feature: Evidence) -> None:
    assert label_of(_with(one_feature, on_share=[[0.93, 0, 0, 0]]), 0) == "fires on ` import` (93 %)"


def test_a_label_names_up_to_a_few_tokens(one_feature: Evidence) -> None:
    assert label_of(_with(one_feature, on_share=[[0.3, 0.2, 0.1, 0]]), 0) == "fires on ` import`, `⏎`, `x` (60 %)"
    assert label_of(one_feature, 0) == "fires on many tokens, such as ` import`, `⏎`, `x`"


def test_a_neighbouring_token_is_named_if_it_is_common_there_and_rare_elsewhere(one_feature: Evidence) -> None:
    usual = _with(one_feature, after_share=[[0.8, 0, 0, 0]], on_share=[[0.9, 0, 0, 0]])
    assert label_of(usual, 0) == "fires on ` import` (90 %), before ` import` (80 %)"
    common = _with(usual, after_lift=[[1.1, 0, 0, 0]])
    assert label_of(common, 0) == "fires on ` import` (90 %)"


def test_lifted_tokens_are_among_those_that_occur(one_feature: Evidence) -> None:
    lifting = _with(one_feature, on_share=[[0.9, 0, 0, 0]], raised_token=[[0, 4, 2]])
    assert label_of(lifting, 0) == "fires on ` import` (90 %); lifts ` numpy`, `⏎`"


def test_a_feature_that_never_fires_says_so(one_feature: Evidence) -> None:
    assert label_of(_with(one_feature, firings=[0]), 0) == NEVER


def test_characters_that_cannot_be_printed_are_made_visible() -> None:
    assert visible("a\n\t\x1b[31m") == "a⏎⇥·[31m"
    assert quoted(" x") == "` x`"
    assert quoted("a`b") == "`aˋb`"
