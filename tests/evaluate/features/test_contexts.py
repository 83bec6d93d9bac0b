"""The contexts that are shown: strongest a document, samples of intervals and of all firings, silent ones."""

import numpy as np

from evaluate.features.contexts import NO_ROW, interval_name, text_of


def test_strongest_contexts_are_each_the_largest_of_another_document(toy) -> None:
    document = toy.text.document
    for feature in range(0, toy.trained.dict_size, 5):
        values = toy.evidence.arrays["largest"][feature] and toy.dense[:, feature]
        best = {}
        for row in np.flatnonzero(toy.dense[:, feature] > 0):
            if values[row] > values[best.get(document[row], row)] or document[row] not in best:
                best[document[row]] = row
        expected = sorted(best.values(), key=lambda row: (-values[row], row))[: toy.settings.top_contexts]
        shown = toy.evidence.arrays["context_strongest"][feature]
        np.testing.assert_allclose(values[shown[shown != NO_ROW]], values[expected], rtol=1e-4)
        assert len({int(document[row]) for row in shown if row != NO_ROW}) == (shown != NO_ROW).sum()


def test_samples_come_from_their_interval_and_are_as_many_as_there_are(toy) -> None:
    arrays = toy.evidence.arrays
    for number in range(toy.settings.intervals):
        shown = arrays[f"context_{interval_name(number)}"]
        wanted = np.minimum(arrays["intervals"][:, number], toy.settings.interval_contexts)
        assert np.array_equal((shown != NO_ROW).sum(axis=1), wanted)
        feature, column = np.nonzero(shown != NO_ROW)
        share = toy.dense[shown[feature, column], feature] / arrays["largest"][feature] * toy.settings.intervals
        assert ((share > number - 1e-4) & (share < number + 1 + 1e-4)).all()
    uniform = arrays["context_uniform"]
    wanted = np.minimum(arrays["firings"], toy.settings.uniform_contexts)
    assert np.array_equal((uniform != NO_ROW).sum(axis=1), wanted)
    feature, column = np.nonzero(uniform != NO_ROW)
    assert (toy.dense[uniform[feature, column], feature] > 0).all()


def test_the_uniform_sample_does_not_prefer_strong_firings(toy) -> None:
    arrays = toy.evidence.arrays
    often = np.flatnonzero(arrays["firings"] > 50)
    uniform = arrays["context_uniform"][often]
    ranks = [
        (toy.dense[:, feature][toy.dense[:, feature] > 0] < toy.dense[row, feature]).mean()
        for feature, rows in zip(often, uniform, strict=True)
        for row in rows
    ]
    assert len(ranks) > 50
    assert abs(np.mean(ranks) - 0.5) < 4 * 0.29 / len(ranks) ** 0.5


def test_silent_contexts_are_of_documents_with_firings_elsewhere(toy) -> None:
    silent, strongest = toy.evidence.arrays["context_silent"], toy.evidence.arrays["context_strongest"]
    feature, column = np.nonzero(silent != NO_ROW)
    assert len(feature) > toy.trained.dict_size
    for number, row in zip(feature, silent[feature, column], strict=True):
        first, end = toy.text.window(int(row), toy.settings.context_tokens)
        assert not (toy.dense[first:end, number] > 0).any()
        assert toy.text.tokens[row] != 0
        assert toy.text.document[row] in toy.text.document[strongest[number][strongest[number] != NO_ROW]]


def test_no_context_is_about_a_special_token_or_shows_one(toy) -> None:
    for name, rows in toy.evidence.arrays.items():
        if name.startswith("context_"):
            shown = rows[rows != NO_ROW]
            assert (toy.text.tokens[shown] != 0).all()
            first, end = toy.text.windows(shown, toy.settings.context_tokens)
            assert all((toy.text.tokens[low:high] != 0).all() for low, high in zip(first, end, strict=True))


def test_a_shown_text_ends_with_its_document_or_context_and_before_a_special_token() -> None:
    tokens = np.array([5, 6, 0, 7, 8, 9, 9])
    document = np.array([1, 1, 1, 1, 1, 2, 2])
    position = np.array([0, 1, 2, 3, 4, 5, 0])
    text = text_of(tokens, document, position, tokens != 0)
    assert text.run_start.tolist() == [0, 0, 2, 3, 3, 5, 6]
    assert text.run_end.tolist() == [2, 2, 3, 5, 5, 6, 7]
