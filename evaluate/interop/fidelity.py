"""FVU and L0 of a dictionary on held-out rows, for every prefix: an export records them before and after.

As in the report (evaluate/metrics/fvu.py, ``fvu``): squared errors over squared distances from the mean of the rows
that are measured. Where there are more rows than asked for, batches from all over the split are taken.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from evaluate.metrics.metric import Replayed
from evaluate.replay import Replay
from transcoder.transcoder import Transcoder


@dataclass(frozen=True)
class Fidelity:
    """``fvu`` and ``l0`` of every prefix, on ``rows`` held-out rows."""

    fvu: tuple[float, ...]
    l0: tuple[float, ...]
    rows: int

    def of_prefix(self, index: int) -> dict[str, Any]:
        """The two numbers of one prefix."""
        return {"fvu": self.fvu[index], "l0": self.l0[index]}


def fidelity(replay: Replay, dictionary: Transcoder, *, rows: int) -> Fidelity:
    """One pass over ``rows`` held-out rows, or all that there are."""
    sums = _Sums(dictionary, replay)
    batches = _batches(len(replay.held_out.view), step=replay.batch_rows, rows=rows)
    replay.progress.begin(f"measure {dictionary.name}", total=sum(map(len, batches)), unit="rows")
    for batch in batches:
        replayed = replay.batch(dictionary, batch.start, batch.stop)
        if replayed:
            sums.add(replayed)
        replay.progress.advance(len(batch))
    replay.progress.end()
    return sums.result()


def _batches(total: int, *, step: int, rows: int) -> list[range]:
    """Evenly spaced batches of ``step`` rows, with at most ``rows`` rows in all."""
    starts = list(range(0, total, step))
    wanted = max(1, min(len(starts), -(-rows // step)))
    chosen = [starts[index * len(starts) // wanted] for index in range(wanted)]
    return [range(start, min(start + step, total)) for start in chosen]


class _Sums:
    """Float64 sums; targets are counted from the held-out mean, so that their squares lose no digits."""

    def __init__(self, dictionary: Transcoder, replay: Replay) -> None:
        prefixes = len(dictionary.prefixes)
        options: dict[str, Any] = {"dtype": torch.float64, "device": replay.device}
        self._centre = replay.held_out.mean_target.to(replay.device)
        self._rows = 0
        self._errors = torch.zeros(prefixes, **options)
        self._firing = torch.zeros(prefixes, **options)
        self._sum: Float[Tensor, " d_target"] = torch.zeros(dictionary.d_target, **options)
        self._squares = torch.zeros((), **options)

    def add(self, batch: Replayed) -> None:
        away = batch.target.double() - self._centre
        self._rows += len(away)
        self._sum += away.sum(dim=0)
        self._squares += away.square().sum()
        self._firing += batch.l0.double().sum(dim=0)
        for index in range(len(self._errors)):
            self._errors[index] += (batch.target - batch.reconstructed[:, index]).double().square().sum()

    def result(self) -> Fidelity:
        variance = self._squares - self._sum.square().sum() / max(1, self._rows)
        fvu = (self._errors / variance).tolist()
        return Fidelity(tuple(fvu), tuple((self._firing / max(1, self._rows)).tolist()), self._rows)
