"""What the language model loses with the dictionary in place of its MLP, where ``--lm`` names the model.

``evaluate.spliced.loss`` has the definitions. Ablating to the mean needs the target's mean over the evaluated rows,
which is all that this metric gathers from them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from evaluate.metrics.inputs import MetricInputs, Splice
from evaluate.metrics.metric import Findings, Metric, Replayed, State
from transcoder.transcoder import Transcoder


@dataclass(frozen=True)
class SplicedLoss(Metric):
    """``splice`` runs the model; without one there is nothing to say."""

    dictionary: Transcoder
    centre: Float[Tensor, " d_target"]
    splice: Splice | None

    @classmethod
    def create(cls, inputs: MetricInputs) -> "SplicedLoss":
        """With the language model that ``--lm`` named, or without one."""
        return cls(inputs.dictionary, inputs.centre, inputs.splice)

    def start(self) -> State:
        """A sum of nothing; empty without a language model."""
        if self.splice is None:
            return {}
        return {"away": torch.zeros_like(self.centre), "rows": self.centre.new_zeros(())}

    def measure(self, batch: Replayed) -> State:
        """Sums around the centre."""
        if self.splice is None:
            return {}
        away = (batch.target.double() - self.centre).sum(dim=0)
        return {"away": away, "rows": away.new_tensor(float(len(batch.target)))}

    def compute(self, state: State) -> Findings:
        """The ``language_model`` fields, and every prefix's rise in cross-entropy."""
        if self.splice is None:
            return Findings({"language_model": None})
        mean = (self.centre + state["away"] / state["rows"]).float()
        fields, delta = self.splice(self.dictionary, mean)
        return Findings({"language_model": fields}, {"delta_cross_entropy": delta})
