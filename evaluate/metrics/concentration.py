"""How much of the target's variance a handful of rows, or of dimensions, owns.

    share of the largest rows        sum over those rows of ||y - mu||^2  /  sum over all rows of the same
    share of the largest dimensions  sum over those dimensions of V_j     /  sum over all dimensions of V_j

with mu the held-out mean and V_j the squared deviations of dimension j (see ``fvu``). The pooled FVU speaks of these
rows and dimensions alone where their share is large, however exact it is.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cache.tools.concentration import DIMENSIONS, NAMED_ROWS, ROW_FRACTIONS, RULED_BY_DIMENSIONS, RULED_BY_ROWS
from evaluate.held_out import HeldOut
from evaluate.metrics.error_sums import distance_sums
from evaluate.metrics.inputs import MetricInputs
from evaluate.metrics.largest_rows import LargestRows
from evaluate.metrics.metric import Findings, Metric, Replayed, State, add
from evaluate.token_text import Speller, speller


@dataclass(frozen=True)
class Concentration(Metric):
    """Of the evaluated rows' target. ``held_out`` and ``spell`` say which tokens the largest rows are."""

    centre: Float[Tensor, " d_target"]
    held_out: HeldOut
    spell: Speller

    @classmethod
    def create(cls, inputs: MetricInputs) -> "Concentration":
        """Around the held-out mean, and with the cache's own tokenizer."""
        return cls(inputs.centre, inputs.held_out, speller(inputs.reader.arrays))

    @cached_property
    def _largest(self) -> LargestRows:
        return LargestRows(ceil(max(ROW_FRACTIONS) * self.held_out.counted), {}, self.centre.device)

    def start(self) -> State:
        """Sums of 0 by dimension, and no rows."""
        width = len(self.centre)
        sums = {"away": torch.zeros(width), "variance": torch.zeros(width), "rows": torch.zeros(())}
        sums = {name: array.double().to(self.centre.device) for name, array in sums.items()}
        return sums | self._largest.start()

    def measure(self, batch: Replayed) -> State:
        """The batch's sums by dimension, and its largest rows."""
        sums = distance_sums(batch.target, self.centre)
        largest = self._largest.of_batch(sums.squares, batch.row)
        rows = sums.squares.new_tensor(len(batch.target))
        return {"away": sums.away, "variance": sums.variance, "rows": rows} | largest

    def combine(self, total: State, addition: State) -> State:
        """Adds the sums; keeps the largest of all rows."""
        add(total, {name: addition[name] for name in ("away", "variance", "rows")})
        return self._largest.combine(total, addition)

    def compute(self, state: State) -> Findings:
        """The ``concentration`` fields, with a warning if a few rows or dimensions have most of the variance."""
        largest = {name: array.cpu().numpy() for name, array in self._largest.finish(state).items()}
        total = float(state["variance"].sum())
        by_dimension = (state["variance"] - state["away"].square() / state["rows"]).cpu().numpy()
        rows = {
            f"{share:.2%}": float(largest["distance"][: ceil(share * int(state["rows"]))].sum()) / total
            for share in ROW_FRACTIONS
        }
        fields = concentration_fields(by_dimension) | {
            "rows": rows,
            "largest_rows": self._named_rows(largest["row"], largest["distance"] / total),
        }
        return Findings({"concentration": fields | {"warning": warning(fields)}})

    def _named_rows(self, rows: np.ndarray, shares: np.ndarray) -> list[dict[str, Any]]:
        view = self.held_out.view
        return [
            {
                "row": int(row),
                "document": int(view.document[row]),
                "position": int(view.position[row]),
                "token": int(view.tokens[row]),
                "text": self.spell(int(view.tokens[row])),
                "share": float(share),
            }
            for row, share in zip(rows[:NAMED_ROWS], shares, strict=False)
        ]


def concentration_fields(variance: Float[np.ndarray, " d_target"]) -> dict[str, Any]:
    """Shares of the largest dimensions, and which they are."""
    order = np.argsort(-variance, kind="stable")
    shares = variance[order] / variance.sum()
    return {
        "dimensions": {str(count): float(shares[:count].sum()) for count in DIMENSIONS},
        "largest_dimensions": [
            {"dimension": int(number), "share": float(share)}
            for number, share in zip(order[:NAMED_ROWS], shares, strict=False)
        ],
    }


def warning(fields: dict[str, Any]) -> str | None:
    """One sentence if a few rows or dimensions have most of the variance; else None."""
    rows = fields["rows"]["0.10%"]
    dimensions = fields["dimensions"]["2"]
    owners: list[str] = []
    if rows > RULED_BY_ROWS:
        owners.append(f"0.1 % of the rows own {rows:.0%} of the target's variance")
    if dimensions > RULED_BY_DIMENSIONS:
        numbers = " and ".join(str(entry["dimension"]) for entry in fields["largest_dimensions"][:2])
        owners.append(f"dimensions {numbers} own {dimensions:.0%}" + ("" if owners else " of the target's variance"))
    if not owners:
        return None
    return f"{', '.join(owners)}: the pooled FVU speaks of those alone. Quote the whitened FVU beside it."
