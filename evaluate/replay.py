"""Replaying held-out rows through a dictionary: one pass, in text order, every metric at once.

The rows are dealt over processes in whole batches, and each process measures its own; the states merge, so that any
number of processes finds the same numbers. A batch that does not fit is measured in halves, and later batches too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from common.distributed import Ranks
from common.errors import CapacityError
from common.halving import Halving
from common.progress import Progress
from evaluate.held_out import HeldOut
from evaluate.metrics.metric import Metric, Replayed, State
from transcoder.transcoder import Transcoder


@dataclass
class Replay:
    """``batch_rows`` are measured at a time, until a batch does not fit."""

    held_out: HeldOut
    batch_rows: int
    device: str
    progress: Progress
    ranks: Ranks = field(default_factory=Ranks.current)

    @cached_property
    def _halving(self) -> Halving:
        refusal = CapacityError("The device's memory is too small for one row.", where=self.device)
        return Halving(self.progress, "rows", refusal, self.batch_rows)

    def run(self, dictionary: Transcoder, metrics: Mapping[str, Metric]) -> dict[str, State]:
        """The state of every metric over all rows and processes."""
        states = {name: metric.start() for name, metric in metrics.items()}
        batches = self._batches()

        def measure(start: int, stop: int) -> dict[str, State]:
            batch = self.batch(dictionary, start, stop)
            return {name: metric.measure(batch) for name, metric in metrics.items()} if batch else {}

        self.progress.begin(f"evaluate {dictionary.name}", total=sum(map(len, batches)), unit="rows")
        for rows in batches:
            for measured in self._halving.run(measure, rows.start, rows.stop):
                for name, state in measured.items():
                    states[name] = metrics[name].combine(states[name], state)
            self.progress.advance(len(rows))
        self.progress.end()
        return {name: self.ranks.merged(state, metrics[name].combine) for name, state in states.items()}

    def _batches(self) -> list[range]:
        """This process's share of the rows."""
        total = len(self.held_out.view)
        step = self.batch_rows
        starts = range(self.ranks.rank * step, total, self.ranks.world * step)
        return [range(start, min(start + step, total)) for start in starts]

    def batch(self, dictionary: Transcoder, start: int, end: int) -> Replayed | None:
        """These rows without special tokens, and what the dictionary makes of them; None where nothing is left."""
        kept = torch.from_numpy(np.flatnonzero(~self.held_out.special[start:end]))
        if not len(kept):
            return None
        rows = self.held_out.view.rows(slice(start, end), view=dictionary.source_view)
        stored = rows.source[kept].to(self.device)
        source = stored.float()
        selection = dictionary.sparse_code(stored)
        return Replayed(
            source=source,
            target=rows.target[kept].to(self.device).float(),
            document=torch.from_numpy(rows.document)[kept].to(self.device),
            row=(kept + start).to(self.device),
            selection=selection,
            reconstructed=dictionary.reconstruct(selection, source),
            prefixes=dictionary.prefixes,
        )
