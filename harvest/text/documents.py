"""The sources of documents: the standard library, files on this disk, or the Hugging Face Hub, with an exact cursor.

A document is its text, or ready token ids. Ranks of a parallel harvest read disjoint documents.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import xxhash

from common.errors import DiskError, MismatchError, UsageError
from harvest.config import HarvestSettings
from harvest.text.find_files import LocalText, find_local_text
from harvest.text.readers import Reader, read_arrow, read_json, read_parquet, text_reader
from harvest.text.rows import NAMED_LIMIT, SKIP, BadRowError, Content, RowReader, TextAccess
from harvest.text.stdlib import stdlib_documents, stdlib_identity

# 4 MB are read at a time while a text is hashed: a text may be larger than memory.
_HASHED_BYTES = 1 << 22


@runtime_checkable
class Documents(Protocol):
    """Documents in a fixed order."""

    def identity(self) -> dict[str, Any]:
        """What the text is, as JSON: part of the cache's fingerprint."""
        ...

    def read(self, state: Any) -> Iterator[tuple[Content, Any]]:
        """Yield each document and the state right after it; ``state`` None begins at the first document."""
        ...


def open_documents(settings: HarvestSettings, access: TextAccess | None = None) -> Documents:
    """The documents of the settings' text, or this rank's share of them.

    Raises UsageError when there is no such file or dataset, DiskError when the Hub cannot be reached.
    """
    access = access or TextAccess()
    if settings.dataset == "stdlib":
        return StdlibDocuments(rank=access.rank, world=access.world)
    row_reader = _row_reader(settings, access)
    text = find_local_text(settings.dataset, split=settings.dataset_split)
    if text is not None:
        return FileDocuments(text, settings, row_reader, access)
    from harvest.text.hub import open_hub

    return open_hub(settings, row_reader, access)


def _row_reader(settings: HarvestSettings, access: TextAccess) -> RowReader:
    if settings.tokens_column:
        return RowReader(settings.tokens_column, "tokens", vocabulary=access.vocabulary)
    if settings.messages_column:
        return RowReader(settings.messages_column, "messages", render=access.render)
    return RowReader(settings.text_column)


class StdlibDocuments:
    """The standard library of the running interpreter; the state is the number of documents read."""

    def __init__(self, *, rank: int = 0, world: int = 1) -> None:
        self._rank = rank
        self._world = world

    def identity(self) -> dict[str, Any]:
        """A hash of all modules, with their number and size: it changes with the version of Python."""
        return {"kind": "stdlib", **asdict(stdlib_identity())}

    def read(self, state: Any) -> Iterator[tuple[Content, Any]]:
        """One document for each module, this process's share of them; the state is how many were read."""
        done = state or 0
        for index, (_, text) in enumerate(stdlib_documents()):
            turn, owner = divmod(index, self._world)
            if owner == self._rank and turn >= done:
                yield text, turn + 1


class FileDocuments:
    """Rows of local files, file after file.

    The state is the file's number, the rows and bytes of it that are done, the rows of all files before, and how many
    rows were skipped. If the number of files is a multiple of the ranks, each rank reads its own files; else every
    ``world``-th row.
    """

    def __init__(self, text: LocalText, settings: HarvestSettings, row_reader: RowReader, access: TextAccess) -> None:
        self._text = text
        self._settings = settings
        self._by_file = len(text.files) % access.world == 0
        self._rank = access.rank
        self._world = access.world
        is_text = text.kind == "text"
        self._row_reader = RowReader("text") if is_text else row_reader
        self._reader = _reader_of(text.kind, settings)
        self.skipped_rows = 0
        """How many rows were left out so far, from the beginning of the text."""
        self.skipped: dict[str, str] = {}
        """Why the first of them were left out, by file and row."""
        self.left_out = text.left_out

    def identity(self) -> dict[str, Any]:
        """The files' names, sizes and hashes, and how they are cut into documents."""
        more: dict[str, Any] = {}
        if self._text.kind == "text":
            more = _text_identity(self._settings)
        if self._row_reader.form == "messages":
            more["form"] = "messages"
        if self._settings.bad_rows == "skip":
            more["bad_rows"] = "skip"
        return _files_identity(self._text.files, self._row_reader.column, more)

    @property
    def hint(self) -> str:
        """What may help if the text is too short."""
        if self._text.kind != "text" or self._settings.txt_document != "file" or self._settings.txt_separator:
            return ""
        return (
            "Each .txt file counts as one document. If a file has several, set harvest.txt_document to paragraph or "
            "line, or harvest.txt_separator to the text between them."
        )

    def read(self, state: Any) -> Iterator[tuple[Content, Any]]:
        """The documents of this process's files or rows; the state is the file and the position in it.

        Raises UsageError for a row that cannot be used, unless the settings skip such rows.
        """
        if state is None:
            state = {"file": 0, "row": 0, "offset": 0, "rows_before": 0, "skipped": 0}
        if "file" not in state:
            raise MismatchError(
                "The cache was begun by an older nestcoder, whose cursors are different.",
                remedy="Finish it with that nestcoder, or give --fresh to replace it.",
            )
        rows = int(state["rows_before"])
        self.skipped_rows = int(state.get("skipped", 0))
        for index in range(state["file"], len(self._text.files)):
            if self._by_file and index % self._world != self._rank:
                continue
            path = self._text.files[index]
            start = {"row": state["row"], "offset": state["offset"]} if index == state["file"] else None
            for number, row, position in self._reader(path, start):
                rows += 1
                if not self._by_file and (rows - 1) % self._world != self._rank:
                    continue
                content = self._content(path, number, row)
                if content is not None:
                    yield content, {"file": index, **position, "rows_before": rows, "skipped": self.skipped_rows}

    def _content(self, path: Path, number: int, row: Any) -> Content | None:
        """The row's document; None for a bad row that is skipped."""
        try:
            if isinstance(row, BadRowError):
                raise row
            return self._row_reader.content(row)
        except BadRowError as bad:
            location = f"{path}, row {number}"
            if self._settings.bad_rows == "skip":
                self.skipped_rows += 1
                if len(self.skipped) < NAMED_LIMIT:
                    self.skipped[location] = bad.why
                return None
            raise UsageError(
                f"A row of the text cannot be used: {bad.why}.", where=location, remedy=f"{bad.remedy} {SKIP}".strip()
            ) from None


def _reader_of(kind: str, settings: HarvestSettings) -> Reader:
    if kind == "text":
        return text_reader(settings.txt_document, settings.txt_separator)
    return {"json": read_json, "parquet": read_parquet, "arrow": read_arrow}[kind]


def _text_identity(settings: HarvestSettings) -> dict[str, Any]:
    if settings.txt_separator is not None:
        return {"sample_by": "separator", "separator": settings.txt_separator}
    return {"sample_by": "document" if settings.txt_document == "file" else settings.txt_document}


def _files_identity(files: tuple[Path, ...], column: str, more: dict[str, Any]) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    size = 0
    for path in files:
        try:
            with path.open("rb") as file:
                while piece := file.read(_HASHED_BYTES):
                    digest.update(piece)
                    size += len(piece)
        except OSError as error:
            raise DiskError(f"The text cannot be read: {error.strerror}.", where=path) from None
    if not size:
        raise UsageError("The text is empty.", where=files[0])
    name = files[0].name if len(files) == 1 else f"{files[0].name} and {len(files) - 1} more"
    return {
        "kind": "files",
        "name": name,
        "files": len(files),
        "bytes": size,
        "hash": digest.hexdigest(),
        "column": column,
        **more,
    }
