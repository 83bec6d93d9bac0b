"""The centre of the sums is the mean of the rows that count, in float64."""

from dataclasses import replace

import torch

from evaluate.metrics.baselines import Baselines
from evaluate.metrics.inputs import MetricInputs


def test_the_centre_is_the_mean_of_the_rows_that_count(toy_inputs: MetricInputs) -> None:
    rows = toy_inputs.reader.split("held_out").rows(slice(None))
    expected = rows.target[torch.from_numpy(rows.tokens != 0)].double().mean(dim=0)
    assert toy_inputs.centre.dtype == torch.float64
    # The statistics of the cache are of the values before they were stored as bfloat16.
    torch.testing.assert_close(toy_inputs.centre, expected, atol=2e-3, rtol=0)


def test_the_baselines_of_the_cache_are_not_measured_again_with_the_reference(toy_inputs: MetricInputs) -> None:
    beside = Baselines.create(replace(toy_inputs, is_reference=True))
    assert beside.start() == {}
    assert Baselines.create(toy_inputs).start()
