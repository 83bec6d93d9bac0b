"""Replaying held-out rows through a dictionary: one pass, in text order, every metric at once.

The rows are dealt over ranks in whole batches, and each rank measures its own; the states merge, so that any number of
ranks finds the same numbers. A batch that does not fit is measured in halves, and later batches in pieces of that size.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from cache.reader import CacheReader, SplitView
from common.errors import CapacityError, UsageError
from common.progress import Progress
from evaluate.memory import is_out_of_memory
from evaluate.metrics.metric import Metric, Replayed, State
from evaluate.together import merged
from train.ranks import Ranks
from transcoder.transcoder import Transcoder


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows of a cache, as a dictionary reads them. No other row is ever opened."""

    view: SplitView

    @property
    def masked(self) -> int:
        """Rows of special tokens, left out by token id."""
        return int((~self.view.is_ordinary(self.view.tokens)).sum())

    @property
    def documents(self) -> int:
        return len(np.unique(self.view.document))


def open_held_out(reader: CacheReader) -> HeldOut:
    """The held-out split. Raises UsageError when it has no row that counts."""
    held_out = HeldOut(reader.split("held_out"))
    if len(held_out.view) <= held_out.masked:
        raise UsageError("the cache has no held-out rows to evaluate on", remedy="Harvest with held_out_tokens above 0")
    return held_out


@dataclass
class Replay:
    """``piece_rows`` is how many rows are measured at a time: ``batch_rows``, until a batch does not fit."""

    held_out: HeldOut
    batch_rows: int
    device: str
    progress: Progress
    ranks: Ranks = field(default_factory=Ranks.current)
    piece_rows: int = 0

    def run(self, dictionary: Transcoder, metrics: Mapping[str, Metric]) -> dict[str, State]:
        """The state of every metric over all rows and ranks."""
        self.piece_rows = self.piece_rows or self.batch_rows
        states = {name: metric.start() for name, metric in metrics.items()}
        batches = self._batches()
        self.progress.begin(f"evaluate {dictionary.name}", total=sum(map(len, batches)), unit="rows")
        for rows in batches:
            for parts in self._measure(dictionary, metrics, rows.start, rows.stop):
                states |= {name: metrics[name].combine(states[name], part) for name, part in parts.items()}
            self.progress.advance(len(rows))
        self.progress.end()
        return {name: merged(metrics[name].combine, state, self.ranks) for name, state in states.items()}

    def _batches(self) -> list[range]:
        """This process's share of the rows."""
        total, step = len(self.held_out.view), self.batch_rows
        mine = range(self.ranks.rank * step, total, self.ranks.world * step)
        return [range(start, min(start + step, total)) for start in mine]

    def _measure(
        self, dictionary: Transcoder, metrics: Mapping[str, Metric], start: int, end: int
    ) -> Iterator[dict[str, State]]:
        while start < end:
            stop = min(start + self.piece_rows, end)
            parts = self._measured(dictionary, metrics, start, stop)
            if parts is None:
                self._halve(stop - start)
                continue
            yield parts
            start = stop

    def _measured(
        self, dictionary: Transcoder, metrics: Mapping[str, Metric], start: int, stop: int
    ) -> dict[str, State] | None:
        """What every metric says of these rows; None where they did not fit, of which nothing is held any more then."""
        try:
            batch = self.batch(dictionary, start, stop)
            return {name: metric.measure(batch) for name, metric in metrics.items()} if batch else {}
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return None

    def batch(self, dictionary: Transcoder, start: int, end: int) -> Replayed | None:
        """These rows without special tokens, and what the dictionary makes of them; None where nothing is left."""
        rows = self.held_out.view.rows(slice(start, end), view=dictionary.source_view)
        kept = torch.from_numpy(np.flatnonzero(self.held_out.view.is_ordinary(rows.tokens)))
        if not len(kept):
            return None
        stored, target = rows.source[kept].to(self.device), rows.target[kept].to(self.device).float()
        selection, source = dictionary.sparse_code(stored), stored.float()
        return Replayed(
            source=source,
            target=target,
            document=torch.from_numpy(rows.document)[kept].to(self.device),
            row=(kept + start).to(self.device),
            selection=selection,
            reconstructed=dictionary.reconstruct(selection, source),
        )

    def _halve(self, rows: int) -> None:
        if rows == 1:
            raise CapacityError("not even one row fits in the device's memory", where=self.device)
        self.piece_rows = (rows + 1) // 2
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
        self.progress.note(f"out of memory: going on with {self.piece_rows} rows at a time")
