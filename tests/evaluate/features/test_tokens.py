"""Tokens and positions, counted one by one."""

from collections import Counter

import numpy as np
import pytest

from evaluate.features.firings import POSITION_BINS


@pytest.mark.parametrize(("name", "offset"), [("before", -1), ("on", 0), ("after", 1)])
def test_tokens_beside_a_feature_are_counted_one_by_one(toy, name: str, offset: int) -> None:
    text, arrays = toy.text, toy.evidence.arrays
    rows = [row for row in toy.kept if text.run_start[row] <= row + offset < text.run_end[row]]
    base = Counter(text.tokens[toy.kept].tolist())
    beside = Counter(text.tokens[np.array(rows) + offset].tolist())
    for feature in range(0, toy.trained.dict_size, 9):
        firing = [row for row in rows if toy.dense[row, feature] > 0]
        counts = Counter(text.tokens[np.array(firing, dtype=int) + offset].tolist())
        expected = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: toy.settings.tokens]
        for bin_number, (token, count) in enumerate(expected):
            assert arrays[f"{name}_token"][feature, bin_number] == token
            assert arrays[f"{name}_count"][feature, bin_number] == count
            share = count / len(firing)
            assert arrays[f"{name}_share"][feature, bin_number] == pytest.approx(share)
            assert arrays[f"{name}_lift"][feature, bin_number] == pytest.approx(share / (base[token] / len(toy.kept)))
            assert arrays[f"{name}_recall"][feature, bin_number] == pytest.approx(count / beside[token])
        assert (arrays[f"{name}_token"][feature, len(expected) :] == -1).all()


def test_positions_are_counted_by_interval_of_the_context(toy) -> None:
    stretch = toy.text.position * POSITION_BINS // 16
    for feature in (0, 30):
        firing = toy.dense[:, feature] > 0
        expected = [int((firing & (stretch == bin_number)).sum()) for bin_number in range(POSITION_BINS)]
        assert toy.evidence.arrays["positions"][feature].tolist() == expected
    base = [int((stretch[toy.kept] == bin_number).sum()) for bin_number in range(POSITION_BINS)]
    assert toy.evidence.arrays["positions_base"].tolist() == base
