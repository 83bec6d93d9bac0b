"""Takes the document out of a row of a dataset, with a message for every row that has none."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

Content = str | list[int]
"""A document: its text, or ready token ids."""
NAMED_LIMIT = 10
"""How many skipped rows are listed with their reason; the others are only counted."""
SKIP = "Correct or remove the row, or set harvest.bad_rows to skip to leave such rows out."


@dataclass(frozen=True)
class TextAccess:
    """What reading needs from the model, and this process's share of the text."""

    vocabulary: int | None = None
    render: Callable[[Any], list[int]] | None = None
    """Turns chat messages into token ids with the tokenizer's template."""
    note: Callable[[str], None] = field(default=lambda _: None)
    """Is called with a sentence for people, for example about a stream that is tried again."""
    rank: int = 0
    world: int = 1


class BadRowError(Exception):
    """A row that cannot be used: why, and what to do; ``ends_file`` when nothing after it in the file can be read."""

    def __init__(self, why: str, *, remedy: str = "", ends_file: bool = False) -> None:
        super().__init__(why)
        self.why = why
        self.remedy = remedy
        self.ends_file = ends_file


@dataclass(frozen=True)
class RowReader:
    """Takes the document out of a row.

    ``form`` is the contents of the column: text, token ids (of a ``vocabulary``, if it is known), or chat messages,
    which ``render`` turns into token ids with the tokenizer's template.
    """

    column: str
    form: str = "text"
    vocabulary: int | None = None
    render: Callable[[Any], list[int]] | None = None

    def content(self, row: Any) -> Content:
        """The row's document. Raises BadRowError."""
        if not isinstance(row, Mapping):
            raise BadRowError(f"it is {_kind(row)}, not an object with columns")
        columns = cast("Mapping[str, Any]", row)
        if self.column not in columns:
            raise BadRowError(
                f"it has no column '{printable(self.column)}'; it has: {', '.join(printable(c) for c in columns)}",
                remedy="Set harvest.text_column, harvest.tokens_column or harvest.messages_column.",
            )
        value = columns[self.column]
        if self.form == "tokens":
            return self._tokens(value)
        if self.form == "messages":
            return self._messages(value)
        return check_text(value, self.column)

    def _tokens(self, value: Any) -> list[int]:
        if value is None:
            return []
        if not isinstance(value, list):
            raise BadRowError(
                f"column '{printable(self.column)}' has {_kind(value)}, not a list of token ids",
                remedy="Set harvest.text_column for text.",
            )
        ids = cast("list[Any]", value)
        # Booleans are integers in Python, so the exact type is compared.
        if set(map(type, ids)) - {int}:
            strange = next(entry for entry in ids if type(entry) is not int)
            raise BadRowError(
                f"column '{printable(self.column)}' has {_kind(strange)} among the token ids",
                remedy="Token ids are integers in one flat list.",
            )
        self._check_range(ids)
        return ids

    def _check_range(self, ids: list[int]) -> None:
        # Tokens are stored as int32.
        highest = (1 << 31) - 1 if self.vocabulary is None else self.vocabulary - 1
        if not ids or (min(ids) >= 0 and max(ids) <= highest):
            return
        strange = next(token for token in ids if not 0 <= token <= highest)
        padding = ", which marks what a loss leaves out," if strange == -100 else ""
        raise BadRowError(
            f"token id {strange}{padding} is not one of 0 to {highest}",
            remedy="Give ids of this model's tokenizer, without padding.",
        )

    def _messages(self, value: Any) -> list[int]:
        if not is_chat(value) or self.render is None:
            raise BadRowError(
                f"column '{printable(self.column)}' has {_kind(value)}, not messages with role and content"
            )
        try:
            return self.render(value)
        except Exception as error:  # templates are programs and may raise any error
            raise BadRowError(f"the chat template refuses it ({printable(str(error)[:120])})") from None


def check_text(value: Any, column: str) -> str:
    """``value`` as text; None is an empty document. Raises BadRowError."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRowError(f"column '{printable(column)}' has {_kind(value)}, not text", remedy=_remedy(value))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRowError(
            f"character {error.start} of the text is half of a surrogate pair, which is not valid in UTF-8",
            remedy="Write the text again with the complete character.",
        ) from None
    return value


def is_chat(value: Any) -> bool:
    """Whether a value is a list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(message, dict) and "role" in message and "content" in message
            for message in cast("list[Any]", value)
        )
    )


def printable(text: object) -> str:
    """A name or value from a file for a message: control characters are escaped, so that no terminal obeys them."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in str(text))


def _kind(value: Any) -> str:
    """What a value is, for people."""
    if is_chat(value):
        return "a chat"
    if isinstance(value, list):
        inner = sorted({type(entry).__name__ for entry in cast("list[Any]", value)})
        return f"a list of {' and '.join(inner) or 'nothing'}"
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float | str):
        return f"{type(value).__name__} {printable(str(value)[:20])}" if not isinstance(value, str) else "a string"
    return f"a {type(value).__name__}"


def _remedy(value: Any) -> str:
    if is_chat(value):
        return "Set harvest.messages_column to this column: the tokenizer's chat template is then applied."
    if isinstance(value, list) and value and all(type(entry) is int for entry in cast("list[Any]", value)):
        return "Set harvest.tokens_column to this column if these are ids of this model's tokenizer."
    if isinstance(value, list):
        return "Join the list to one text for each row."
    return "Set harvest.text_column to a column of text."
