"""A new metric is a class and its name in the list: its fields are in the report, and nothing else changes."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from cache.reader import CacheReader
from evaluate.measure import measure
from evaluate.metrics.catalogue import METRICS
from evaluate.metrics.inputs import MetricInputs
from evaluate.metrics.metric import Findings, Metric, Replayed, State
from tests.helpers.evaluation import evaluate


@dataclass(frozen=True)
class MeanNorm(Metric):
    """Mean norm of the target: a metric that only this test knows."""

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


def test_a_new_metric_is_one_class_in_the_list(
    toy_cache: Path, toy_transcoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_listed = partial(measure, kinds=(*METRICS, MeanNorm))
    monkeypatch.setattr("evaluate.run.measure", as_listed)
    evaluate(toy_cache, toy_transcoder, tmp_path / "report")
    found = json.loads((tmp_path / "report" / "metrics.json").read_text())
    rows = CacheReader.open(toy_cache).split("held_out").rows(slice(None))
    target = rows.target[torch.from_numpy(rows.tokens != 0)]
    assert found["mean_norm"] == pytest.approx(float(target.float().norm(dim=1).mean()), rel=1e-6)
    assert found["tokens_used"] == len(target)


def test_every_metric_is_listed_once() -> None:
    names = [metric.__name__ for metric in METRICS]
    assert len(set(names)) == len(names)
    # What the report reads in addition to the fields.
    assert {"Sparsity", "TopContexts"} <= set(names)
