"""A page says what the arrays say, in words."""

import json

import numpy as np
import pytest

from evaluate.features.text.page import feature_page, rounded


def test_a_page_is_plain_data_with_every_section(toy) -> None:
    page = json.loads(json.dumps(feature_page(toy.evidence, 40)))
    assert page["id"] == "3/40"
    assert page["prefix"] == 64
    assert page["firings"] == int((toy.dense[:, 40] > 0).sum())
    assert page["density"] == pytest.approx(page["firings"] / len(toy.kept))
    assert sum(page["histogram"]) == page["firings"]
    assert sum(interval["share"] for interval in page["intervals"]) == pytest.approx(1)
    assert page["logits"] is None
    for context in page["contexts"]["strongest"]:
        assert context["values"][context["at"]] == pytest.approx(toy.dense[context["row"], 40], rel=1e-3)
        assert len(context["tokens"]) == len(context["values"]) <= 7
    assert all(not any(context["values"]) for context in page["contexts"]["silent"])


def test_shared_rows_are_fractions_of_the_rows_of_the_shown_feature(toy) -> None:
    fires = toy.dense > 0
    page = feature_page(toy.evidence, 40)
    for entry in [*page["relatives"]["near"], *page["relatives"]["coarser"]]:
        both = (fires[:, 40] & fires[:, entry["feature"]]).sum()
        assert entry["rows"] == both
        assert entry["given"] == pytest.approx(both / fires[:, 40].sum(), rel=1e-3)
        expected = both * len(toy.kept) / (fires[:, 40].sum() * fires[:, entry["feature"]].sum())
        assert entry["lift"] == pytest.approx(expected, rel=1e-3)


def test_finer_features_are_those_whose_first_parent_is_this_one(toy) -> None:
    first = toy.evidence.arrays["coarser_feature"][:, 0]
    for feature in range(8):
        finer = [entry["feature"] for entry in feature_page(toy.evidence, feature)["relatives"]["finer"]]
        assert sorted(finer) == np.flatnonzero(first == feature).tolist()


def test_four_digits_are_kept() -> None:
    assert rounded(0.000123456) == 0.0001235
