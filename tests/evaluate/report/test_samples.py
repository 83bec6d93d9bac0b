"""The samples of a feature: which features are shown, the text around their strongest rows, and how it is marked."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evaluate.metrics.inputs import MetricInputs
from evaluate.report.samples import AFTER, BEFORE, Context, FeatureSample, as_json, as_text, chosen_features, sample


def test_features_are_chosen_evenly_over_frequency_among_those_in_enough_documents() -> None:
    firings = np.array([5, 1, 9, 7, 3, 100, 200])
    documents = np.zeros((7, 2), dtype=np.int64)
    documents[3, 1] = -1  # strong in one document only
    groups = [range(5), range(5, 7)]
    assert chosen_features(firings, documents, groups=groups, count=2) == [4, 2, 5, 6]
    assert chosen_features(firings, documents, groups=groups, count=0) == []


@given(st.integers(0, 12), st.integers(0, 99))
def test_no_feature_is_chosen_twice_if_there_are_too_few(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    firings = random.integers(0, 5, 9)
    documents = random.integers(-1, 3, (9, 2))
    chosen = chosen_features(firings, documents, groups=[range(9)], count=count)
    known = (documents >= 0).all(axis=1)
    assert len(chosen) == len(set(chosen)) == min(count, known.sum())
    assert known[chosen].all()


def test_the_text_around_a_row_stays_in_its_context(toy_inputs: MetricInputs) -> None:
    """Contexts are 16 rows long; the code of the shown rows is that of the dictionary."""
    dictionary = toy_inputs.dictionary
    feature, row, late = 3, 17, 31
    strongest = np.full((dictionary.dict_size, 2), [row, late])
    firings = np.full(dictionary.dict_size, 150)
    (found,) = sample(
        toy_inputs.held_out,
        dictionary,
        features=[feature],
        rows=strongest,
        firings=firings,
        spell=lambda token: f"{token} ",
    )
    assert (found.feature, found.prefix, found.density) == (feature, 8, 0.1)
    first, second = found.contexts
    view = toy_inputs.held_out.view
    assert (first.row, first.at, len(first.tokens)) == (row, 1, 2 + AFTER)
    assert (second.row, second.at, len(second.tokens)) == (late, BEFORE, BEFORE + 1)
    rows = view.rows(slice(16, 18 + AFTER))
    assert first.tokens == [f"{token} " for token in rows.tokens]
    expected = dictionary.encode(rows.source.float())[:, feature]
    np.testing.assert_allclose(first.activations, expected.numpy(), atol=1e-4)


def test_marks_show_the_strongest_token_and_others_that_it_fires_on() -> None:
    context = Context(document=1, row=5, at=2, tokens=["a", "b\n", "c\t", "d\x00"], activations=[0.0, 0.5, 2.25, 0.0])
    shown = FeatureSample(feature=7, prefix=1024, density=0.0125, contexts=[context])
    heading, line = as_text([shown]).splitlines()
    assert heading == "feature 7  (prefix 1,024; fires on 1.25% of tokens)"
    assert line == "     2.250  a‹b⏎›⟦c⇥⟧d·"
    assert as_json([shown])[0]["contexts"][0]["at"] == 2
