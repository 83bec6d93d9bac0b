"""Where the time of a harvest's pass goes, as a harvest reports it."""

import time
from collections.abc import Sequence
from typing import Any

from common.progress import Stopwatch
from harvest.sink import Sink
from harvest.threads import BackgroundWriter, Prefetcher


class PassTimes:
    """The stopwatches of the two threads of a pass, which begins when this is made.

    ``own``: all, batches (all but the end, when only the disk is left), launching, proving. ``writing``:
    waiting_for_rows, appending.
    """

    def __init__(self) -> None:
        self.own = Stopwatch()
        self.writing = Stopwatch()
        self._began = time.perf_counter()

    def facts(
        self, batches: Prefetcher[Any], rows: BackgroundWriter[Any], sinks: Sequence[Sink]
    ) -> dict[str, float | int]:
        """Seconds of the whole pass and of its parts; the threads' parts overlap.

        The model's thread: waited_for_text, launching (on a CPU the model itself), proving, waited_for_disk, ending.
        The writing thread: waited_for_rows, dealing (rows checked and put in order), committing (files written, flushed
        and named in the journal). ``first_rows_seconds`` is when a batch's rows were there for the first time,
        ``first_segment_seconds`` when a segment was committed: later rows cost none of what is done once.
        """
        own = {name: self.own.seconds.get(name, 0.0) for name in ("all", "batches", "launching", "proving")}
        committing = sum(sink.writer.watch.seconds.get("committing", 0.0) for sink in sinks)
        first_rows, first_at = sinks[0].writer.first_commit or (0, self._began)
        return {
            "seconds": own["all"],
            "waited_for_text_seconds": batches.waited_seconds,
            "launching_seconds": own["launching"],
            "proving_seconds": own["proving"],
            "waited_for_disk_seconds": rows.waited_seconds,
            "ending_seconds": own["all"] - own["batches"],
            "waited_for_rows_seconds": self.writing.seconds.get("waiting_for_rows", 0.0),
            "dealing_seconds": self.writing.seconds.get("appending", 0.0) - committing,
            "committing_seconds": committing,
            "first_rows_seconds": self.writing.first.get("rows", 0.0),
            "first_segment_rows": first_rows,
            "first_segment_seconds": first_at - self._began,
            "text_cpu_seconds": batches.cpu_seconds,
            "disk_cpu_seconds": rows.cpu_seconds,
        }
