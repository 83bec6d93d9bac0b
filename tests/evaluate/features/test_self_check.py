"""The self-check finds what is wrong with evidence."""

from dataclasses import replace

import numpy as np
import pytest

from common.errors import MismatchError, NumericalError
from evaluate.features.self_check import check_evidence


def test_sound_evidence_passes(toy) -> None:
    found = check_evidence(toy.evidence, toy.reader, toy.trained)
    assert found["contexts"] == 64
    assert found["values"] > 64
    assert found["largest_difference"] < 1e-4


def test_values_of_another_feature_are_found(toy) -> None:
    shifted = replace(
        toy.evidence, arrays={**toy.evidence.arrays, "entry_value": toy.evidence.arrays["entry_value"] * 1.5}
    )
    with pytest.raises(NumericalError, match="other values"):
        check_evidence(shifted, toy.reader, toy.trained)


def test_a_missing_value_is_found(toy) -> None:
    values = toy.evidence.arrays["entry_value"].copy()
    values[values > np.quantile(values, 0.5)] = 0
    with pytest.raises(NumericalError):
        check_evidence(
            replace(toy.evidence, arrays={**toy.evidence.arrays, "entry_value": values}), toy.reader, toy.trained
        )


def test_another_cache_is_refused(toy) -> None:
    head = {**toy.evidence.head, "cache": {**toy.evidence.head["cache"], "fingerprint": "0" * 32}}
    with pytest.raises(MismatchError, match="another cache"):
        check_evidence(replace(toy.evidence, head=head), toy.reader, toy.trained)
