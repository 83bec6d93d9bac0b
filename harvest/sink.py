"""A layer's cache during a harvest: where it stopped and which batches it takes."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from cache.writer import CacheWriter
from common.device import on_stream, reach
from common.progress import Stopwatch
from harvest.batch import BatchRows
from harvest.config import HarvestSettings
from harvest.text.tokens import ContextBatch


@dataclass
class Sink:
    """A layer's cache while it fills; ``waiting`` until the text reaches the point where this cache stopped."""

    layer: int
    writer: CacheWriter
    waiting: bool = True

    @property
    def batch_contexts(self) -> int | None:
        """The contexts of a batch in an interrupted harvest; the same bits need the same number."""
        return self.writer.cursor["batch_contexts"] if self.writer.cursor else None

    def takes(self, batch: ContextBatch) -> bool:
        """Whether this cache takes the batch."""
        self.waiting = self.waiting and _emitted(batch.cursor) != _emitted(self.writer.cursor)
        return not self.waiting and not self.writer.complete


def _emitted(cursor: dict[str, Any] | None) -> list[int]:
    """How many training and held-out contexts come before a cursor."""
    return cursor["emitted"] if cursor else [0, 0]


def slowest_cursor(sinks: Sequence[Sink]) -> dict[str, Any] | None:
    """The earliest cursor that one of the caches needs; None is the beginning of the text."""
    return min((sink.writer.cursor for sink in sinks), key=lambda cursor: cursor["emitted_rows"] if cursor else 0)


def cut_alike(sinks: Sequence[Sink]) -> list[list[Sink]]:
    """The caches in groups that can be filled in one pass: those whose text is cut into the same batches.

    A cache without rows can have any batches, so it joins the first group.
    """
    groups: dict[int | None, list[Sink]] = {}
    for sink in sorted(sinks, key=lambda sink: sink.batch_contexts is None):
        cut = sink.batch_contexts or next(iter(groups), None)
        groups.setdefault(cut, []).append(sink)
    return list(groups.values())


def writing(sinks: Sequence[Sink], settings: HarvestSettings, watch: Stopwatch) -> Callable[[BatchRows], None]:
    """The work of the writing thread: it gives a batch's rows to every cache that takes them.

    ``watch`` counts how long it waits for a device to compute them, and how long it then takes.
    """

    def write(rows: BatchRows) -> None:
        """Append the rows to the caches that are not beyond them."""
        with watch.timing("waiting_for_rows"):
            for point in rows.computed.values():
                reach(point)
        watch.note_first("rows")
        with watch.timing("appending"), ExitStack() as streams:
            # On streams of their own: on the model's these rows would wait until later batches are computed.
            for device, point in rows.computed.items():
                streams.enter_context(on_stream(device, "rows", after=point))
            for sink in sinks:
                if sink.takes(rows.batch):
                    sink.writer.append(
                        rows.site(sink.layer, settings.source),
                        rows.site(sink.layer, settings.target),
                        *rows.columns,
                        held_out=rows.batch.held_out,
                        cursor=rows.batch.cursor,
                    )

    return write
