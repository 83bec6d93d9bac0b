"""A new metric is a class and its name in the list: its fields arrive in the report with nothing else changed."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cache.reader import CacheReader
from common.progress import Silent
from evaluate.absorption.first_letter import absorption_scorer
from evaluate.config import EvaluateSettings
from evaluate.held_out import open_held_out
from evaluate.measure import measure
from evaluate.metrics.catalogue import METRICS
from evaluate.metrics.inputs import MetricInputs
from evaluate.metrics.metric import Findings, Metric, Replayed, State
from evaluate.replay import Replay
from transcoder.formats.native import load_transcoder


@dataclass(frozen=True)
class MeanNorm(Metric):
    """Mean norm of the target: a metric that nobody but this test knows."""

    @classmethod
    def create(cls, inputs: MetricInputs) -> "MeanNorm":
        return cls()

    def start(self) -> State:
        return {"norms": torch.zeros((), dtype=torch.float64), "rows": torch.zeros((), dtype=torch.float64)}

    def measure(self, batch: Replayed) -> State:
        norms = batch.target.norm(dim=1).double()
        return {"norms": norms.sum(), "rows": norms.new_tensor(len(norms))}

    def compute(self, state: State) -> Findings:
        return Findings({"mean_norm": float(state["norms"] / state["rows"])})


def test_a_new_metric_is_one_class_in_the_list(toy_cache: Path, toy_transcoder: Path) -> None:
    reader = CacheReader.open(toy_cache)
    held_out = open_held_out(reader)
    dictionary = load_transcoder(toy_transcoder)
    scorer = absorption_scorer(reader, toy_cache / "no probe")
    inputs = MetricInputs(dictionary, held_out, reader, EvaluateSettings(bootstrap=0), "cpu", scorer)
    found = measure(Replay(held_out, 256, "cpu", Silent()), inputs, (*METRICS, MeanNorm)).metrics
    rows = held_out.view.rows(slice(None)).target[torch.from_numpy(~held_out.special)]
    assert found["mean_norm"] == pytest.approx(float(rows.float().norm(dim=1).mean()), rel=1e-6)
    assert found["tokens_used"] == len(rows)


def test_every_metric_of_the_list_has_its_own_fields(toy_cache: Path, toy_transcoder: Path) -> None:
    reader = CacheReader.open(toy_cache)
    held_out = open_held_out(reader)
    dictionary = load_transcoder(toy_transcoder)
    scorer = absorption_scorer(reader, toy_cache / "no probe")
    inputs = MetricInputs(dictionary, held_out, reader, EvaluateSettings(bootstrap=0), "cpu", scorer)
    with pytest.raises(AssertionError, match="one metric"):
        measure(Replay(held_out, 256, "cpu", Silent()), inputs, (MeanNorm, type("Twin", (MeanNorm,), {})))
