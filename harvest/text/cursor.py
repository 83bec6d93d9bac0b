"""Where a stream of contexts stands, as JSON: all that is needed to yield the same batches from there on."""

from dataclasses import dataclass
from typing import Any

from common.errors import MismatchError
from harvest.text.packing import Pending, pending_from_json, pending_to_json

_VERSION = 1


@dataclass(frozen=True)
class Snapshot:
    """The stream as it stood before a document: all that is needed to go on from there."""

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
            f"The cache was begun by a nestcoder whose place in the text has version {cursor['version']}.",
            remedy="Finish it with that nestcoder, or begin anew with --fresh.",
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
