"""The metric that reports first-letter absorption, from the probe cache that lies beside an activation cache."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cache.format.layout import ActivationName
from cache.reader import CacheReader
from evaluate.absorption.dictionary import measure_absorption
from evaluate.absorption.letters import Readability, readability
from evaluate.absorption.probe_set import DESCRIPTION, read_probe_set
from evaluate.metrics.inputs import AbsorptionScorer, MetricInputs
from evaluate.metrics.metric import Findings, Metric, State
from transcoder.transcoder import Transcoder

NO_PROBE = "there is no probe cache: run 'nestcoder harvest --probe first-letter'"


@dataclass(frozen=True)
class FirstLetterAbsorption(Metric):
    """Reads no held-out rows: the probe cache has rows of its own."""

    dictionary: Transcoder
    scorer: AbsorptionScorer

    @classmethod
    def create(cls, inputs: MetricInputs) -> "FirstLetterAbsorption":
        """With the scorer that the probe cache beside the activation cache gives."""
        return cls(inputs.dictionary, inputs.absorption)

    def compute(self, state: State) -> Findings:  # noqa: ARG002
        """The ``absorption_first_letter`` fields; the definition is in ``evaluate.absorption.score``."""
        return Findings({"absorption_first_letter": self.scorer(self.dictionary)})


def absorption_scorer(reader: CacheReader, folder: Path, *, column: ActivationName | None = None) -> AbsorptionScorer:
    """Scores dictionaries on the probe cache in ``folder``; gives a reason where there is none.

    ``column`` is that of an autoencoder, whose source and target both are.
    """
    if not (folder / DESCRIPTION).is_file():
        return lambda _: {"score": None, "reason": NO_PROBE}
    words = read_probe_set(folder, fingerprint=reader.fingerprint)
    if column:
        values = getattr(words, column)
        words = replace(words, source=values, target=values)
    probes: dict[str, Readability] = {}

    def score(dictionary: Transcoder) -> dict[str, Any]:
        view = dictionary.source_view
        seen = replace(words, source=reader.as_view(words.source, view))
        if view not in probes:
            probes[view] = readability(seen)
        return measure_absorption(dictionary.on("cpu"), seen, probes[view])

    return score
