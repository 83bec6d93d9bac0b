"""Documents into contexts: which token stands where, and from which document it is.

Packed, a context is full and reads ``BOS a a a BOS b b BOS c``; a document that goes on in the next context stands
there behind that context's own BOS. With ``packing: document`` a context holds one document, or a part of it, and may
be short. A BOS belongs to the document that follows it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class Context:
    """What the model sees at once; ``begins`` are the offsets at which a document's text begins."""

    tokens: Int[np.ndarray, " rows"]
    documents: Int[np.ndarray, " rows"]
    begins: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, rows: int) -> "Context":
        """The same context, cut to its first ``rows``; what comes later never changed them."""
        begins = tuple(begin for begin in self.begins if begin < rows)
        return Context(self.tokens[:rows], self.documents[:rows], begins)

    def document_positions(self) -> Int[np.ndarray, " rows"]:
        """Each row's distance from its document's first row in this context."""
        starts = np.zeros(len(self), dtype=np.int64)
        starts[list(self.begins)] = self.begins
        return np.arange(len(self)) - np.maximum.accumulate(starts)


@dataclass(frozen=True)
class _Piece:
    document: int
    begins: bool
    tokens: Int[np.ndarray, " rows"]


Pending = tuple[_Piece, ...]


class Packer:
    """Fills contexts with documents; ``pending`` is the context that is not full yet.

    ``bos`` begins contexts and documents; None puts nothing there. ``alone``: one document a context.
    """

    def __init__(self, *, context: int, bos: int | None, alone: bool, pending: Pending = ()) -> None:
        self._context = context
        self._bos = bos
        self._alone = alone
        self._pieces = list(pending)
        self._filled = sum(len(piece.tokens) for piece in pending)

    @property
    def pending(self) -> Pending:
        """A snapshot that a new Packer goes on from."""
        return tuple(self._pieces)

    def add(self, document: int, tokens: Int[np.ndarray, " tokens"]) -> Iterator[Context]:
        """Put a document in and yield the contexts that it fills; a BOS that it brings along is not doubled."""
        if self._bos is not None and len(tokens) and tokens[0] == self._bos:
            tokens = tokens[1:]
        done = 0
        while done < len(tokens):
            begins = self._filled == 0 or done == 0
            if begins and self._bos is not None:
                self._put(document, np.asarray([self._bos], dtype=np.int32), begins=True)
                begins = False
            piece = tokens[done : done + self._context - self._filled]
            self._put(document, piece, begins=begins)
            done += len(piece)
            if self._filled == self._context:
                yield self._take()
        if self._alone:
            yield from self.flush()

    def flush(self) -> Iterator[Context]:
        """Yield what is pending as a short context, if anything is."""
        if self._filled:
            yield self._take()

    def _put(self, document: int, tokens: Int[np.ndarray, " tokens"], *, begins: bool) -> None:
        if len(tokens):
            self._pieces.append(_Piece(document, begins, tokens.astype(np.int32, copy=False)))
            self._filled += len(tokens)

    def _take(self) -> Context:
        pieces = self._pieces
        self._pieces = []
        self._filled = 0
        lengths = [len(piece.tokens) for piece in pieces]
        offsets = np.cumsum([0, *lengths[:-1]])
        return Context(
            tokens=np.concatenate([piece.tokens for piece in pieces]),
            documents=np.repeat(np.asarray([piece.document for piece in pieces], dtype=np.int64), lengths),
            begins=tuple(int(at) for at, piece in zip(offsets, pieces, strict=True) if piece.begins),
        )


def pending_to_json(pending: Pending) -> list[Any]:
    """A pending context as JSON."""
    return [[piece.document, piece.begins, piece.tokens.tolist()] for piece in pending]


def pending_from_json(data: list[Any]) -> Pending:
    """What ``pending_to_json`` wrote."""
    return tuple(_Piece(document, begins, np.asarray(tokens, dtype=np.int32)) for document, begins, tokens in data)
