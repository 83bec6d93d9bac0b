"""The cursor of a stream of contexts, as JSON: all that is needed to yield the same batches from there on."""

from dataclasses import dataclass
from typing import Any

from common.errors import MismatchError
from harvest.text.packing import Pending, pending_from_json, pending_to_json

_VERSION = 1  # of the cursor's JSON; another version is refused


@dataclass(frozen=True)
class Snapshot:
    """The state of the stream before a document: all that is needed to go on from there."""

    state: Any
    document: int
    epoch: int
    pending: tuple[Pending, Pending]
    contexts: tuple[int, int]
    rows: tuple[int, int]


BEGINNING = Snapshot(state=None, document=0, epoch=0, pending=((), ()), contexts=(0, 0), rows=(0, 0))


def cursor_to_json(snapshot: Snapshot, emitted: list[int], *, rows: int, batch_contexts: int) -> dict[str, Any]:
    """The cursor of the batch that begins after ``emitted`` contexts and ``rows`` rows."""
    return {
        "version": _VERSION,
        "state": snapshot.state,
        "document": snapshot.document,
        "epoch": snapshot.epoch,
        "pending": [pending_to_json(pending) for pending in snapshot.pending],
        "contexts": list(snapshot.contexts),
        "rows": list(snapshot.rows),
        "emitted": list(emitted),
        "emitted_rows": rows,
        "batch_contexts": batch_contexts,
    }


def read_cursor(cursor: dict[str, Any] | None) -> tuple[Snapshot, list[int], int]:
    """The snapshot of a cursor, and the contexts (training, held out) and rows before it.

    Raises MismatchError for a cursor of another version.
    """
    if cursor is None:
        return BEGINNING, [0, 0], 0
    if cursor["version"] != _VERSION:
        raise MismatchError(
            f"The cache was begun by another nestcoder: its cursors have version {cursor['version']}, not {_VERSION}.",
            remedy="Finish it with that nestcoder, or give --fresh to replace it.",
        )
    train, held_out = (pending_from_json(pending) for pending in cursor["pending"])
    snapshot = Snapshot(
        state=cursor["state"],
        document=cursor["document"],
        epoch=cursor["epoch"],
        pending=(train, held_out),
        contexts=(cursor["contexts"][0], cursor["contexts"][1]),
        rows=(cursor["rows"][0], cursor["rows"][1]),
    )
    return snapshot, list(cursor["emitted"]), int(cursor["emitted_rows"])
