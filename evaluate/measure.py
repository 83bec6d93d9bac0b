"""Measures one dictionary: ours and any other get the same metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluate.metrics.catalogue import METRICS
from evaluate.metrics.inputs import MetricInputs, Replicates
from evaluate.metrics.metric import Metric, State
from evaluate.replay import Replay
from transcoder.transcoder import Transcoder


@dataclass(frozen=True)
class Measurement:
    """``metrics`` as they are in metrics.json; ``replicates`` of two dictionaries are paired; ``states`` by the name of
    the metric's class, for what reads more than the report says."""

    dictionary: Transcoder
    metrics: dict[str, Any]
    replicates: Mapping[str, Replicates]
    states: Mapping[str, State]


def measure(replay: Replay, inputs: MetricInputs, kinds: Sequence[type[Metric]] = METRICS) -> Measurement:
    """One pass over the held-out rows for all metrics, and the result of each."""
    metrics = {kind.__name__: kind.create(inputs) for kind in kinds}
    states = replay.run(inputs.dictionary, metrics)

    fields: dict[str, Any] = {
        "prefixes": list(inputs.dictionary.prefixes),
        "documents": inputs.held_out.documents,
        "tokens_masked": inputs.held_out.masked,
    }
    replicates: dict[str, Replicates] = {}
    for name, metric in metrics.items():
        findings = metric.compute(states[name])
        assert not fields.keys() & findings.fields.keys(), "every field of metrics.json has one metric"
        fields |= findings.fields
        replicates |= findings.replicates
    return Measurement(inputs.dictionary, fields, replicates, states)
