"""The mean that a model's target is ablated to is that of the evaluated rows; without a model there is nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from common.progress import Silent
from evaluate.measure import measure
from evaluate.metrics.inputs import MetricInputs
from evaluate.metrics.language_model import SplicedLoss
from evaluate.replay import Replay
from transcoder.transcoder import Transcoder


def test_the_model_is_given_the_mean_and_its_answer_is_reported(toy_inputs: MetricInputs) -> None:
    given: list[torch.Tensor] = []

    def splice(dictionary: Transcoder, mean: torch.Tensor) -> tuple[dict[str, Any], np.ndarray]:
        assert dictionary is toy_inputs.dictionary
        given.append(mean)
        return {"clean": 3.5}, np.ones((1, 3))

    replay = Replay(toy_inputs.held_out, 100, "cpu", Silent())
    found = measure(replay, replace(toy_inputs, splice=splice), [SplicedLoss])
    rows = toy_inputs.reader.split("held_out").rows(slice(None))
    expected = rows.target[torch.from_numpy(rows.tokens != 0)].double().mean(dim=0)
    torch.testing.assert_close(given, [expected.float()], atol=1e-6, rtol=1e-6)
    assert found.metrics["language_model"] == {"clean": 3.5}
    assert found.replicates["delta_cross_entropy"].tolist() == [[1.0, 1.0, 1.0]]


def test_without_a_model_nothing_is_measured(toy_inputs: MetricInputs) -> None:
    metric = SplicedLoss.create(toy_inputs)
    assert metric.start() == {}
    assert metric.compute({}).fields == {"language_model": None}
