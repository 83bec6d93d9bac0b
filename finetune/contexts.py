"""The training text of a cache, in the contexts that it was harvested in: fine-tuning needs no text of its own.

A cache shuffles its training rows within segments by a permutation that can be looked up, so the order of the text
comes back: the row of stream place i of a segment is permute(i). Shorter contexts are filled up behind with a special
token, which no earlier position sees and no loss counts.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int32, Int64

from cache.order import derive_key, permute
from cache.reader import CacheReader
from common.errors import UsageError
from evaluate.spliced.contexts import Contexts, positions_in

_ORDER = 11
"""Names this use of the seed, so that no other use of it gives a related order."""


@dataclass(frozen=True)
class TrainText:
    """Tokens and documents in the order of the text, and where each context begins and ends."""

    tokens: Int32[np.ndarray, " rows"]
    document: Int64[np.ndarray, " rows"]
    starts: Int64[np.ndarray, " contexts"]
    stops: Int64[np.ndarray, " contexts"]
    filler: int
    per_document: bool
    """Whether attention stays inside a document."""

    @staticmethod
    def from_reader(reader: CacheReader) -> "TrainText":
        """Raises UsageError for a cache without tokens, or without a complete context."""
        order = _stream_order(reader)
        view = reader.split("train")
        position = view.position[order]
        tokens = view.tokens[order]
        if position.min(initial=0) < 0 or tokens.min(initial=0) < 0:
            raise UsageError("This cache has no tokens, so there is no text to run.", where=reader.path)
        begins = np.flatnonzero(position == 0)
        # Positions count from the start of the context, so a context whose beginning is missing is found here.
        ends = np.flatnonzero(np.append(position[1:] != position[:-1] + 1, True)) + 1
        stops = ends[np.searchsorted(ends, begins, side="right")] if len(begins) else begins
        longest = int((stops - begins).max(initial=0))
        special = reader.special_ids
        kept = np.ones(len(begins), bool) if special else stops - begins == longest
        if longest < 2:
            raise UsageError(
                "This cache has no context of two tokens or more, so there is no text to run.", where=reader.path
            )
        filler = special[0] if special else 0
        per_document = reader.identity.get("attention") == "document"
        return TrainText(tokens, view.document[order], begins[kept], stops[kept], filler, per_document)

    @property
    def context(self) -> int:
        """Tokens of the longest context."""
        return int((self.stops - self.starts).max())

    def batch(self, step: int, *, contexts: int, seed: int, device: str) -> Contexts:
        """The contexts of a step, 0-based: every context once an epoch, in another order in each epoch."""
        positions = np.arange(step * contexts, (step + 1) * contexts, dtype=np.int64)
        epochs, inside = np.divmod(positions, len(self.starts))
        chosen = np.concatenate(
            [
                permute(inside[epochs == epoch], len(self.starts), key=derive_key(seed, _ORDER, int(epoch)))
                for epoch in np.unique(epochs)
            ]
        )
        length = int((self.stops - self.starts)[chosen].max())
        tokens = np.full((contexts, length), self.filler, np.int64)
        document = np.full((contexts, length), -1, np.int64)
        for row, context in enumerate(chosen):
            text = slice(self.starts[context], self.stops[context])
            tokens[row, : text.stop - text.start] = self.tokens[text]
            document[row, : text.stop - text.start] = self.document[text]
        positions = np.array(positions_in(document, per_document=self.per_document), np.int64)
        return Contexts(*(torch.from_numpy(array).to(device) for array in (tokens, document, positions)))


def _stream_order(reader: CacheReader) -> Int64[np.ndarray, " rows"]:
    """The training rows in the order of the text, part after part."""
    group = reader.split("train").group
    seed = reader.manifest.shuffle_seed

    def segments() -> Iterator[Int64[np.ndarray, " rows"]]:
        for segment in range(group.segments):
            rows = group.rows_in(segment)
            slots = permute(np.arange(rows, dtype=np.int64), rows, key=derive_key(seed, segment))
            yield segment * group.segment_rows + slots

    pieces = list(segments())
    return np.concatenate(pieces) if pieces else np.empty(0, np.int64)
