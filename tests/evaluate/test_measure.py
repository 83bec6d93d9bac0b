"""One pass for all metrics: their fields in one document, each field by one metric, and their states."""

from dataclasses import dataclass

import pytest
import torch

from common.progress import Silent
from evaluate.measure import measure
from evaluate.metrics.inputs import MetricInputs
from evaluate.metrics.metric import Findings, Metric, Replayed, State
from evaluate.metrics.sparsity import Sparsity
from evaluate.replay import Replay


@dataclass(frozen=True)
class Rows(Metric):
    """How many rows were measured, with a replicate of that number."""

    @classmethod
    def create(cls, inputs: MetricInputs) -> "Rows":
        return cls()

    def start(self) -> State:
        return {"rows": torch.zeros(())}

    def measure(self, batch: Replayed) -> State:
        return {"rows": torch.tensor(float(len(batch.row)))}

    def compute(self, state: State) -> Findings:
        return Findings({"rows": int(state["rows"])}, {"rows": state["rows"].view(1, 1).numpy()})


class SameRows(Rows):
    """Another metric that would write the same field."""


def replay(inputs: MetricInputs, rows: int = 256) -> Replay:
    return Replay(inputs.held_out, rows, "cpu", Silent())


@pytest.mark.parametrize("rows", [100, 1600])
def test_all_metrics_give_fields_replicates_and_states(toy_inputs: MetricInputs, rows: int) -> None:
    found = measure(replay(toy_inputs, rows), toy_inputs, (Rows, Sparsity))
    assert found.dictionary is toy_inputs.dictionary
    assert found.metrics["rows"] == found.replicates["rows"].item() == toy_inputs.held_out.counted
    assert found.states["Rows"]["rows"] == toy_inputs.held_out.counted
    assert found.states["Sparsity"]["firings"].sum() > 0
    assert found.metrics["prefixes"] == list(toy_inputs.dictionary.prefixes)
    assert found.metrics["documents"] == toy_inputs.held_out.documents
    assert found.metrics["tokens_masked"] == toy_inputs.held_out.masked


def test_two_metrics_with_one_field_are_a_mistake(toy_inputs: MetricInputs) -> None:
    with pytest.raises(AssertionError, match="one metric"):
        measure(replay(toy_inputs), toy_inputs, (Rows, SameRows))
