"""Packs documents into contexts: the position of every token, and its document.

Packed contexts are full: ``BOS a a a BOS b b BOS c``. A document that continues in the next context comes there after
that context's BOS. With ``packing: document`` a context has one document, or a piece of it, and may be short. A BOS
belongs to the document after it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int


@dataclass(frozen=True)
class Context:
    """The tokens of one context and their documents; ``begins`` are the offsets at which a document's text begins."""

    tokens: Int[np.ndarray, " rows"]
    documents: Int[np.ndarray, " rows"]
    begins: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.tokens)

    def first(self, rows: int) -> "Context":
        """The same context, cut to its first ``rows``, which do not depend on later tokens."""
        begins = tuple(begin for begin in self.begins if begin < rows)
        return Context(self.tokens[:rows], self.documents[:rows], begins)

    def document_positions(self) -> Int[np.ndarray, " rows"]:
        """The distance of each row from the first row of its document in this context."""
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

    ``bos`` begins contexts and documents (None: no token). ``alone``: one document in each context.
    """

    def __init__(self, *, context: int, bos: int | None, alone: bool, pending: Pending = ()) -> None:
        self._context = context
        self._bos = bos
        self._alone = alone
        self._pieces = list(pending)
        self._filled = sum(len(piece.tokens) for piece in pending)

    @property
    def pending(self) -> Pending:
        """The unfinished context, from which a new Packer can go on."""
        return tuple(self._pieces)

    def add(self, document: int, tokens: Int[np.ndarray, " tokens"]) -> Iterator[Context]:
        """Add a document and yield the contexts that it fills. If it begins with BOS, no second one is added."""
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
        """Yield the unfinished context as a short one, if there is one."""
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
            begins=tuple(int(offset) for offset, piece in zip(offsets, pieces, strict=True) if piece.begins),
        )


def pending_to_json(pending: Pending) -> list[Any]:
    """A pending context as JSON."""
    return [[piece.document, piece.begins, piece.tokens.tolist()] for piece in pending]


def pending_from_json(data: list[Any]) -> Pending:
    """What ``pending_to_json`` wrote."""
    return tuple(_Piece(document, begins, np.asarray(tokens, dtype=np.int32)) for document, begins, tokens in data)
