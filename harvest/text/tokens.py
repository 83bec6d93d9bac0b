"""Batches of contexts for the model, in an order that depends only on the text and the settings.

Training and held-out documents fill different contexts, so a batch belongs to one split. Every batch has the cursor at
which it begins: the state before the oldest document that is still needed, the unfinished contexts at that point, and
how much was yielded before. A stream that begins at a cursor yields exactly that batch and all later ones, cut in the
same way, so that the model's sums are the same to the last bit.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from common.errors import UsageError
from harvest.text.cursor import Snapshot, cursor_to_json, read_cursor
from harvest.text.documents import Documents
from harvest.text.packing import Context, Packer
from harvest.text.rows import Content
from harvest.text.split import document_bytes, is_held_out

# Positions in every pair of (training, held out).
TRAIN = 0
HELD_OUT = 1
_GROUP_DOCUMENTS = 64
_FIRST_GROUP_CHARACTERS = 1 << 12
_GROUP_CHARACTERS = 1 << 17
"""Documents are tokenised in groups: small ones first, because the model waits for them, then larger ones."""


@dataclass(frozen=True)
class ContextBatch:
    """Contexts for one forward pass. Short ones are padded with BOS; ``kept`` is False there, and nothing is stored."""

    tokens: Int[np.ndarray, "contexts pos"]
    documents: Int[np.ndarray, "contexts pos"]
    kept: Bool[np.ndarray, "contexts pos"]
    document_positions: Int[np.ndarray, "contexts pos"]
    held_out: bool
    cursor: dict[str, Any] | None
    """Where a stream must begin to yield this batch again; None is the beginning of the text."""

    @property
    def rows(self) -> int:
        """Rows that are stored."""
        return int(self.kept.sum())


@dataclass(frozen=True)
class StreamSettings:
    """Everything that determines the position of every token."""

    context: int
    bos: int
    """Pads short contexts, and begins every context and document if ``begins_with_bos``."""
    alone: bool
    repeat: bool
    rows: tuple[int, int]
    """Training and held-out rows to yield in all, counted from the beginning of the text."""
    batch_contexts: int
    held_out_fraction: float
    split_seed: int
    vocabulary: int
    begins_with_bos: bool = True
    held_out_document_tokens: int | None = None
    """The most tokens of a held-out document that are used; None is all of them."""


class ContextStream:
    """An iterator of ContextBatch from a cursor on (None: from the beginning).

    ``rows_before`` counts the rows before the cursor. ``first_document`` and ``document_step`` number the documents of
    a rank so that no two ranks share a number. Raises UsageError when the text ends before there are enough rows.
    """

    def __init__(
        self,
        documents: Documents,
        tokenizer: Any,
        *,
        settings: StreamSettings,
        cursor: dict[str, Any] | None = None,
        first_document: int = 0,
        document_step: int = 1,
    ) -> None:
        self._documents = documents
        self._tokenizer = tokenizer
        self._settings = settings
        self._first = first_document
        self._step = document_step
        start, self._emitted, self.rows_before = read_cursor(cursor)
        self._cursor = cursor
        self._emitted_rows = self.rows_before
        self._snapshots = deque([start])
        self._packers = [
            Packer(
                context=settings.context,
                bos=settings.bos if settings.begins_with_bos else None,
                alone=settings.alone,
                pending=pending,
            )
            for pending in start.pending
        ]
        self._contexts = list(start.contexts)
        self._rows = list(start.rows)
        self._waiting: tuple[list[Context], list[Context]] = ([], [])

    @property
    def rows(self) -> tuple[int, int]:
        """Training and held-out rows in all, from the beginning of the text."""
        return self._settings.rows

    def __iter__(self) -> Iterator[ContextBatch]:
        start = self._snapshots[0]
        state = start.state
        document = start.document
        epoch = start.epoch
        while not self._full():
            for content, following in self._encoded(state):
                self._remember(state, document, epoch)
                yield from self._add(self._first + self._step * document, content)
                state = following
                document = document + 1
                if self._full():
                    break
            else:
                yield from self._end_of_text()
                state = None
                epoch = epoch + 1
        yield from self._flush()

    def _full(self) -> bool:
        return all(done >= wanted for done, wanted in zip(self._rows, self._settings.rows, strict=True))

    def _end_of_text(self) -> Iterator[ContextBatch]:
        for split in (TRAIN, HELD_OUT):
            for context in self._packers[split].flush():
                yield from self._produce(split, context)
        # Reading the text again helps only if it has documents for each split that needs rows.
        helps = all(done or not wanted for done, wanted in zip(self._rows, self._settings.rows, strict=True))
        if self._full() or (self._settings.repeat and helps):
            return
        yield from self._flush()
        wanted = self._settings.rows
        (train, held_out) = self._rows
        raise UsageError(
            f"The text is too short: it has {train:,} training and {held_out:,} held-out tokens, but {wanted[0]:,} and "
            f"{wanted[1]:,} were asked for.",
            where=self._text_name(),
            remedy=getattr(self._documents, "hint", "")
            or "Lower harvest.train_tokens or harvest.held_out_tokens, give more text, or set harvest.repeat.",
        )

    def _text_name(self) -> str:
        identity = self._documents.identity()
        return str(identity.get("name", identity["kind"]))

    def _remember(self, state: Any, document: int, epoch: int) -> None:
        pending = (self._packers[TRAIN].pending, self._packers[HELD_OUT].pending)
        contexts = (self._contexts[0], self._contexts[1])
        rows = (self._rows[0], self._rows[1])
        self._snapshots.append(Snapshot(state, document, epoch, pending=pending, contexts=contexts, rows=rows))

    def _encoded(self, state: Any) -> Iterator[tuple[tuple[int, Int[np.ndarray, " tokens"]], Any]]:
        group: list[tuple[Content, Any]] = []
        characters = 0
        enough = _FIRST_GROUP_CHARACTERS
        for content, following in self._documents.read(state):
            group.append((content, following))
            characters += len(content)
            if len(group) == _GROUP_DOCUMENTS or characters >= enough:
                yield from self._encode(group)
                group = []
                characters = 0
                enough = min(2 * enough, _GROUP_CHARACTERS)
        yield from self._encode(group)

    def _encode(self, group: list[tuple[Content, Any]]) -> Iterator[tuple[tuple[int, Int[np.ndarray, " tokens"]], Any]]:
        splits = [self._split_of(content) for content, _ in group]
        texts = [
            content if isinstance(content, str) and self._rows[split] < self._settings.rows[split] else ""
            for (content, _), split in zip(group, splits, strict=True)
        ]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for (content, following), split, encoding in zip(group, splits, encodings, strict=True):
            ids = encoding.ids if isinstance(content, str) else content
            yield (split, self._checked(np.asarray(ids, dtype=np.int32))), following

    def _split_of(self, content: Content) -> int:
        data = document_bytes(content)
        held_out = is_held_out(data, fraction=self._settings.held_out_fraction, seed=self._settings.split_seed)
        return HELD_OUT if held_out else TRAIN

    def _checked(self, ids: Int[np.ndarray, " tokens"]) -> Int[np.ndarray, " tokens"]:
        if len(ids) and not 0 <= ids.min() <= ids.max() < self._settings.vocabulary:
            raise UsageError(
                f"Token id {ids.max()} is not in the model's vocabulary of {self._settings.vocabulary:,}.",
                where=self._text_name(),
                remedy="The token ids are probably of another model: give text, or ids of this model's tokenizer.",
            )
        return ids

    def _add(self, document: int, encoded: tuple[int, Int[np.ndarray, " tokens"]]) -> Iterator[ContextBatch]:
        split, ids = encoded
        if split == HELD_OUT:
            ids = ids[: self._settings.held_out_document_tokens]
        if self._rows[split] >= self._settings.rows[split]:
            return
        for context in self._packers[split].add(document, ids):
            yield from self._produce(split, context)

    def _produce(self, split: int, context: Context) -> Iterator[ContextBatch]:
        missing = self._settings.rows[split] - self._rows[split]
        if missing <= 0:
            return
        context = context.first(missing)
        self._contexts[split] += 1
        self._rows[split] += len(context)
        if self._contexts[split] > self._emitted[split]:
            self._waiting[split].append(context)
        if (
            len(self._waiting[split]) == self._settings.batch_contexts
            or self._rows[split] == self._settings.rows[split]
        ):
            yield from self._emit(split)

    def _flush(self) -> Iterator[ContextBatch]:
        for split in (TRAIN, HELD_OUT):
            yield from self._emit(split)

    def _emit(self, split: int) -> Iterator[ContextBatch]:
        contexts = self._waiting[split]
        if not contexts:
            return
        self._emitted[split] += len(contexts)
        self._emitted_rows += sum(len(context) for context in contexts)
        while len(self._snapshots) > 1 and self._reaches(self._snapshots[1]):
            self._snapshots.popleft()
        yield _batch(contexts, bos=self._settings.bos, held_out=split == HELD_OUT, cursor=self._cursor)
        contexts.clear()
        self._cursor = cursor_to_json(
            self._snapshots[0], self._emitted, rows=self._emitted_rows, batch_contexts=self._settings.batch_contexts
        )

    def _reaches(self, snapshot: Snapshot) -> bool:
        return all(context <= done for context, done in zip(snapshot.contexts, self._emitted, strict=True))


def _batch(contexts: list[Context], *, bos: int, held_out: bool, cursor: dict[str, Any] | None) -> ContextBatch:
    shape = (len(contexts), max(len(context) for context in contexts))
    tokens = np.full(shape, bos, dtype=np.int64)
    documents = np.zeros(shape, dtype=np.int64)
    kept = np.zeros(shape, dtype=np.bool_)
    positions = np.tile(np.arange(shape[1]), (shape[0], 1))
    for row, context in enumerate(contexts):
        size = len(context)
        tokens[row, :size] = context.tokens
        documents[row, :size] = context.documents
        kept[row, :size] = True
        positions[row, :size] = context.document_positions()
    return ContextBatch(tokens, documents, kept, document_positions=positions, held_out=held_out, cursor=cursor)
