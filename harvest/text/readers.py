"""Rows of one local file, one function for each kind: (row number from 1, row or BadRowError, state after the row).

Instead of a row that cannot be read comes a BadRowError, so that the caller may refuse or skip it. The state is JSON:
the number of rows, and for lines of text the offset in bytes.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from harvest.text.rows import BadRowError

Row = tuple[int, Any, dict[str, int]]
Reader = Callable[[Path, "dict[str, int] | None"], Iterator[Row]]
_CHARACTERS = 1 << 20
"""Characters of a .txt file that are read at a time: a file may be larger than memory."""
_ARROW_ROWS = 256
"""Rows that are decoded at a time: few, because a document may be long."""
_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_NOT_UTF8 = "it is not UTF-8"
_CONVERT = "Convert it: iconv -f LATIN1 -t UTF-8 (or the encoding that it has)."


def _utf16() -> BadRowError:
    return BadRowError("the file is UTF-16", remedy="Convert it: iconv -f UTF-16 -t UTF-8.", ends_file=True)


def _open(path: Path) -> Any:
    """The file for reading bytes, unpacked if it is a .gz."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _lines(path: Path, start: dict[str, int] | None) -> Iterator[tuple[int, bytes | BadRowError, dict[str, int]]]:
    """Lines without their ends, from ``start`` on; if the file is damaged, the last entry is the error."""
    number = start["row"] if start else 0
    offset = start["offset"] if start else 0
    try:
        with _open(path) as file:
            # Seeking in a .gz reads it from its beginning, which is correct and as fast as reading.
            file.seek(offset)
            for line in file:
                if offset == 0 and line.startswith(_UTF16_BOMS):
                    yield number + 1, _utf16(), {"row": number, "offset": offset}
                    return
                text = line.removeprefix(_UTF8_BOM) if offset == 0 else line
                offset += len(line)
                number += 1
                yield number, text.rstrip(b"\r\n"), {"row": number, "offset": offset}
    except (EOFError, zlib.error, OSError) as error:
        yield number + 1, _unreadable(error), {"row": number, "offset": offset}


def _unreadable(error: Exception) -> BadRowError:
    if isinstance(error, EOFError):
        why = "the compressed file ends early"
    elif isinstance(error, gzip.BadGzipFile | zlib.error):
        why = f"the compressed file is damaged ({error})"
    else:
        why = f"the file cannot be read: {getattr(error, 'strerror', None) or error}"
    return BadRowError(why, remedy="Copy or download the file again, or leave it out.", ends_file=True)


def read_json(path: Path, start: dict[str, int] | None) -> Iterator[Row]:
    """One JSON object in each line; or one list of objects, which is read into memory."""
    if path.name.removesuffix(".gz").endswith(".json"):
        entries = _json_list(path)
        if entries is not None:
            for number, entry in enumerate(entries, start=1):
                if not start or number > start["row"]:
                    yield number, entry, {"row": number, "offset": 0}
            return
    for number, line, position in _lines(path, start):
        if isinstance(line, BadRowError):
            yield number, line, position
        elif line.strip():
            yield number, _parsed(line), position


def _json_list(path: Path) -> list[Any] | None:
    """The entries of a file that is one JSON list; None for another form, and for a file that cannot be read."""
    try:
        with _open(path) as file:
            # Enough to see the first character after spaces.
            if not file.read(64).removeprefix(_UTF8_BOM).lstrip().startswith(b"["):
                return None
            file.seek(0)
            found: Any = json.loads(file.read().removeprefix(_UTF8_BOM))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError):
        return None
    return cast("list[Any]", found)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return BadRowError(_NOT_UTF8, remedy=_CONVERT)
    except RecursionError:
        return BadRowError("its JSON is nested too deeply")
    except ValueError as error:  # also a number of more digits than Python reads
        return BadRowError(f"it is not JSON ({error})")


def text_reader(document: str, separator: str | None) -> Reader:
    """The reader of .txt files: ``document`` is file, paragraph or line, unless there is a ``separator``."""
    if separator is not None:
        return lambda path, start: _separated(path, start, separator)
    if document == "line":
        return _read_lines
    if document == "paragraph":
        return lambda path, start: _separated(path, start, "\n\n")
    return _read_file


def _read_lines(path: Path, start: dict[str, int] | None) -> Iterator[Row]:
    for number, line, position in _lines(path, start):
        if isinstance(line, BadRowError):
            yield number, line, position
        else:
            try:
                yield number, {"text": line.decode()}, position
            except UnicodeDecodeError:
                yield number, BadRowError(_NOT_UTF8, remedy=_CONVERT), position


def _read_file(path: Path, start: dict[str, int] | None) -> Iterator[Row]:
    if start and start["row"]:
        return
    end = {"row": 1, "offset": 0}
    try:
        yield 1, {"text": "".join(_characters(path))}, end
    except BadRowError as bad:
        yield 1, bad, end


def _separated(path: Path, start: dict[str, int] | None, separator: str) -> Iterator[Row]:
    """The texts between separators that are not empty. With ``start``, the ones before it are read and skipped."""
    done = start["row"] if start else 0
    number = 0
    rest = ""
    try:
        for characters in _characters(path):
            *pieces, rest = (rest + characters).split(separator)
            for piece in filter(None, pieces):
                number += 1
                if number > done:
                    yield number, {"text": piece}, {"row": number, "offset": 0}
    except BadRowError as bad:
        yield number + 1, bad, {"row": number, "offset": 0}
        return
    if rest and number + 1 > done:
        yield number + 1, {"text": rest}, {"row": number + 1, "offset": 0}


def _characters(path: Path) -> Iterator[str]:
    """The file's text in pieces, line ends as ``\\n``, without a byte order mark. Raises BadRowError."""
    try:
        with _open(path) as file:
            if file.read(2) in _UTF16_BOMS:
                raise _utf16()
            file.seek(0)
            text = io.TextIOWrapper(file, encoding="utf-8-sig")
            while piece := text.read(_CHARACTERS):
                yield piece
    except UnicodeDecodeError:
        raise BadRowError(_NOT_UTF8, remedy=_CONVERT, ends_file=True) from None
    except (EOFError, zlib.error, OSError) as error:
        raise _unreadable(error) from None


def read_parquet(path: Path, start: dict[str, int] | None) -> Iterator[Row]:
    """The rows of a Parquet file; with ``start``, row groups before it are skipped without reading them."""
    import pyarrow as arrow
    from pyarrow import parquet

    done = start["row"] if start else 0
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            first = 0
            while first < len(sizes) and number + sizes[first] <= done:
                number += sizes[first]
                first += 1
            for batch in file.iter_batches(_ARROW_ROWS, row_groups=list(range(first, len(sizes)))):
                for row in batch.to_pylist():
                    number += 1
                    if number > done:
                        yield number, row, {"row": number, "offset": 0}
    except (arrow.ArrowException, OSError, ValueError) as error:
        yield number + 1, _unreadable_table(error), {"row": number, "offset": 0}


def read_arrow(path: Path, start: dict[str, int] | None) -> Iterator[Row]:
    """The rows of an Arrow file that ``save_to_disk`` wrote."""
    import pyarrow as arrow
    from pyarrow import ipc

    done = start["row"] if start else 0
    number = 0
    try:
        with path.open("rb") as file, ipc.open_stream(file) as stream:
            for batch in stream:
                if number + batch.num_rows <= done:
                    number += batch.num_rows
                    continue
                for row in batch.to_pylist():
                    number += 1
                    if number > done:
                        yield number, row, {"row": number, "offset": 0}
    except (arrow.ArrowException, OSError, ValueError) as error:
        yield number + 1, _unreadable_table(error), {"row": number, "offset": 0}


def _unreadable_table(error: Exception) -> BadRowError:
    reason = str(error).strip().splitlines()
    return BadRowError(
        f"the file cannot be read: {reason[0] if reason else type(error).__name__}",
        remedy="Copy or download the file again, or leave it out.",
        ends_file=True,
    )
