"""Shares of the largest rows and dimensions against their definition, and when a report warns of them."""

from typing import Any

import numpy as np
import pytest
import torch

from common.progress import Silent
from evaluate.measure import measure
from evaluate.metrics.concentration import Concentration, concentration_fields, warning
from evaluate.metrics.inputs import MetricInputs
from evaluate.replay import Replay


@pytest.mark.parametrize("rows", [64, 1600])
def test_shares_are_their_definition(toy_inputs: MetricInputs, rows: int) -> None:
    """The share of the largest rows is that of their squared distances from the mean that the cache states."""
    found = measure(Replay(toy_inputs.held_out, rows, "cpu", Silent()), toy_inputs, [Concentration])
    fields = found.metrics["concentration"]
    view = toy_inputs.held_out.view
    counted = np.flatnonzero(view.tokens != 0)
    target = view.rows(slice(None)).target.double().numpy()[counted]
    distance = ((target - toy_inputs.centre.numpy()) ** 2).sum(axis=1)
    order = np.argsort(-distance, kind="stable")
    assert fields["rows"]["0.10%"] == pytest.approx(distance[order[:2]].sum() / distance.sum(), rel=1e-9)
    assert fields["rows"]["1.00%"] == pytest.approx(distance[order[:15]].sum() / distance.sum(), rel=1e-9)
    variance = ((target - target.mean(axis=0)) ** 2).sum(axis=0)
    largest = np.sort(variance)[::-1]
    assert fields["dimensions"]["2"] == pytest.approx(largest[:2].sum() / variance.sum(), rel=1e-9)
    assert fields["largest_dimensions"][0]["dimension"] == variance.argmax()
    first = fields["largest_rows"][0]
    assert first["row"] == counted[order[0]]
    assert first["token"] == view.tokens[first["row"]]
    assert first["text"] == f"[{first['token']}]"
    assert fields["warning"] is None


def fields_of(variance: list[float], rows: float) -> dict[str, Any]:
    return concentration_fields(np.array(variance)) | {"rows": {"0.10%": rows}}


def test_a_warning_names_what_dominates() -> None:
    even = [1.0] * 100
    ruled = [1.0, 400.0, 1.0, 500.0, *[1.0] * 20]
    assert warning(fields_of(even, 0.01)) is None
    assert str(warning(fields_of(even, 0.9))).startswith("0.1 % of the rows own 90% of the target's variance:")
    assert str(warning(fields_of(ruled, 0.01))).startswith("dimensions 3 and 1 own 98% of the target's variance:")
    both = str(warning(fields_of(ruled, 0.9)))
    assert "0.1 % of the rows own 90% of the target's variance, dimensions 3 and 1 own 98%:" in both


def test_equal_dimensions_are_named_by_number() -> None:
    named = concentration_fields(np.ones(4))["largest_dimensions"]
    assert [entry["dimension"] for entry in named] == [0, 1, 2, 3]
    assert torch.tensor([entry["share"] for entry in named]).tolist() == [0.25] * 4
