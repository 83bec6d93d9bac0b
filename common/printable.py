"""Text that is safe to print: what a file or a user wrote must not move the cursor or change colours of a terminal."""


def printable(text: str, *, keep_lines: bool = False) -> str:
    """The text with everything that is no visible character written as an escape: ``\\x1b`` for the Escape key.

    Escaped are control characters, marks that turn the direction of text round, and lone surrogates, which no terminal
    can print. ``keep_lines`` leaves line ends as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or (keep_lines and character == "\n") else _escaped(character)
        for character in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
