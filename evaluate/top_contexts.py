"""Where each feature fires most: its strongest activation in each of the few documents where it is strongest.

Kept while rows are replayed, in dict_size x contexts entries; one document counts once, or a licence text that a
hundred files repeat would be all there is to see.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from evaluate.metric import Replayed, State

_NOTHING: dict[str, float | int] = {"value": 0.0, "document": -1, "row": -1}


@dataclass(frozen=True)
class TopContexts:
    """The ``contexts`` strongest documents of every feature: value, document and row, strongest first."""

    dict_size: int
    contexts: int
    device: str = "cpu"

    def start(self) -> State:
        """Nothing yet: value 0, document and row -1."""
        shape = (self.dict_size, self.contexts)
        return {name: torch.full(shape, nothing, device=self.device) for name, nothing in _NOTHING.items()}

    def measure(self, batch: Replayed) -> State:
        """The strongest of one batch."""
        selection = batch.selection
        fires = selection.values > 0
        values, features = selection.values[fires].float(), selection.features[fires].long()
        at = selection.rows().long()[fires]
        strongest = _first_of(_order(values, batch.document[at], features), batch.document[at], features)
        order = _order(values[strongest], torch.zeros_like(strongest), features[strongest])
        kept = strongest[order]
        place = _place_within(features[kept])
        kept, place = kept[place < self.contexts], place[place < self.contexts]
        state = self.start()
        for name, column in (("value", values), ("document", batch.document[at]), ("row", batch.row[at])):
            state[name].index_put_((features[kept], place), column[kept].to(state[name].dtype))
        return state

    def combine(self, total: State, part: State) -> State:
        """The strongest of both; of a document that both know, the stronger row."""
        part = {name: array.to(total[name].device) for name, array in part.items()}
        same = (total["document"][:, :, None] == part["document"][:, None, :]) & (part["document"][:, None, :] >= 0)
        weaker = total["value"][:, :, None] < part["value"][:, None, :]
        joined = {name: torch.cat([total[name], part[name]], dim=1) for name in total}
        beaten = torch.cat([(same & weaker).any(dim=2), (same & ~weaker).any(dim=1)], dim=1)
        for name, nothing in _NOTHING.items():
            joined[name].masked_fill_(beaten, nothing)
        best = joined["value"].sort(dim=1, descending=True, stable=True).indices[:, : self.contexts]
        return {name: array.gather(1, best) for name, array in joined.items()}

    def compute(self, state: State) -> dict[str, Any]:
        """The table itself, as arrays."""
        return {name: array.cpu().numpy() for name, array in state.items()}


def _order(values: Tensor, middle: Tensor, features: Tensor) -> Int[Tensor, " entries"]:
    """By feature, then ``middle``, then the largest value; equal values keep their order."""
    order = values.sort(descending=True, stable=True).indices
    order = order[middle[order].sort(stable=True).indices]
    return order[features[order].sort(stable=True).indices]


def _first_of(order: Tensor, documents: Tensor, features: Tensor) -> Int[Tensor, " entries"]:
    """Of entries in order, the first of every (feature, document)."""
    key = torch.stack([features[order], documents[order]])
    starts = torch.ones(len(order), dtype=torch.bool, device=order.device)
    starts[1:] = (key[:, 1:] != key[:, :-1]).any(dim=0)
    return order[starts]


def _place_within(features: Int[Tensor, " entries"]) -> Int[Tensor, " entries"]:
    """The place of each entry among those of its feature, for features in order."""
    number = torch.arange(len(features), device=features.device)
    starts = torch.ones(len(features), dtype=torch.bool, device=features.device)
    starts[1:] = features[1:] != features[:-1]
    return number - torch.where(starts, number, 0).cummax(dim=0).values
