"""Where each feature fires most: its strongest activation in each of the few documents where it is strongest.

Kept while rows are replayed, in dict_size x contexts entries; one document counts once, or a licence text that a
hundred files repeat would be all there is to see.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from evaluate.metrics.inputs import MetricInputs
from evaluate.metrics.metric import Findings, Metric, Replayed, State

_LARGEST_INT = (1 << 31) - 1
"""The largest int32: the bits of a positive float, subtracted from it, sort the largest value first."""
_NOTHING: dict[str, float | int] = {"value": 0.0, "document": -1, "row": -1}


@dataclass(frozen=True)
class TopContexts(Metric):
    """The ``contexts`` strongest documents of every feature: value, document and row, strongest first.

    They are for samples.json, which reads the state; metrics.json has no field of them.
    """

    dict_size: int
    contexts: int
    device: str = "cpu"

    @classmethod
    def create(cls, inputs: MetricInputs) -> "TopContexts":
        """As many contexts a feature as the settings show."""
        return cls(inputs.dictionary.dict_size, inputs.settings.sample_contexts, inputs.device)

    def start(self) -> State:
        """No contexts: value 0, document and row -1."""
        shape = (self.dict_size, self.contexts)
        return {name: torch.full(shape, nothing, device=self.device) for name, nothing in _NOTHING.items()}

    def measure(self, batch: Replayed) -> State:
        """The strongest contexts of a batch."""
        fires = batch.selection.values > 0
        values = batch.selection.values[fires].float()
        features = batch.selection.features[fires].long()
        rows = batch.selection.rows().long()[fires]
        if not len(rows):
            return self.start()
        strongest = _strongest_by_document(values, features, batch.document, rows)
        order = strongest[_by_feature_and_value(features[strongest], values[strongest])]
        number = _number_within(features[order])
        is_kept = number < self.contexts
        kept = order[is_kept]
        number = number[is_kept]
        state = self.start()
        for name, column in (("value", values), ("document", batch.document[rows]), ("row", batch.row[rows])):
            state[name].index_put_((features[kept], number), column[kept].to(state[name].dtype))
        return state

    def combine(self, total: State, addition: State) -> State:
        """The strongest contexts of both, written into ``total``; of a document in both, the stronger row."""
        addition = {name: array.to(total[name].device) for name, array in addition.items()}
        changed = (addition["value"][:, 0] > total["value"][:, -1]).nonzero()[:, 0]
        known = {name: array[changed] for name, array in total.items()}
        new = {name: array[changed] for name, array in addition.items()}
        best = self._best(known, new)
        for name, array in best.items():
            total[name][changed] = array
        return total

    def _best(self, known: State, new: State) -> State:
        """Of some features' contexts, strongest first."""
        same = (known["document"][:, :, None] == new["document"][:, None, :]) & (new["document"][:, None, :] >= 0)
        weaker = known["value"][:, :, None] < new["value"][:, None, :]
        joined = {name: torch.cat([known[name], new[name]], dim=1) for name in known}
        beaten = torch.cat([(same & weaker).any(dim=2), (same & ~weaker).any(dim=1)], dim=1)
        for name, nothing in _NOTHING.items():
            joined[name].masked_fill_(beaten, nothing)
        order = joined["value"].sort(dim=1, descending=True, stable=True).indices[:, : self.contexts]
        return {name: array.gather(1, order) for name, array in joined.items()}

    def compute(self, state: State) -> Findings:  # noqa: ARG002
        """No field: ``samples`` reads the table from the state."""
        return Findings({})


def _strongest_by_document(
    values: Float[Tensor, " entries"],
    features: Int[Tensor, " entries"],
    document: Int[Tensor, " rows"],
    rows: Int[Tensor, " entries"],
) -> Int[Tensor, " strongest"]:
    """The entry with the largest value of every (feature, document), of equal ones the first; ordered by feature."""
    known, document_index = torch.unique(document, return_inverse=True)
    key, order = (features * len(known) + document_index[rows]).sort(stable=True)
    _, pair, lengths = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
    largest = torch.segment_reduce(values[order], "max", lengths=lengths)
    reaching = (values[order] == largest[pair]).nonzero()[:, 0]
    first = torch.ones_like(reaching, dtype=torch.bool)
    first[1:] = pair[reaching][1:] != pair[reaching][:-1]
    return order[reaching[first]]


def _by_feature_and_value(
    features: Int[Tensor, " entries"], values: Float[Tensor, " entries"]
) -> Int[Tensor, " entries"]:
    """The order by feature, then largest value first; equal entries keep their order. (The bits of positive floats have
    the order of the floats.)"""
    return (features << 32 | _LARGEST_INT - values.view(torch.int32).long()).sort(stable=True).indices


def _number_within(features: Int[Tensor, " entries"]) -> Int[Tensor, " entries"]:
    """The number of each entry among those of its feature, for features in order."""
    number = torch.arange(len(features), device=features.device)
    starts = torch.ones(len(features), dtype=torch.bool, device=features.device)
    starts[1:] = features[1:] != features[:-1]
    return number - torch.where(starts, number, 0).cummax(dim=0).values
