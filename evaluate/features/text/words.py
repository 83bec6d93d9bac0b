"""The text of a token id, by the tokenizer that the harvest stored with the cache.

A token of a few bytes that are no character by themselves is written as those bytes: \\xE2.
"""

import re
from collections.abc import Callable, Mapping

import numpy as np
from tokenizers import Tokenizer

from evaluate.token_text import TOKENIZER, Speller, speller

_UNKNOWN = "�"
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


def speller_of(arrays: Mapping[str, np.ndarray]) -> Speller:
    """Token ids to text; ids in brackets where the cache has no tokenizer."""
    spell = speller(arrays)
    if TOKENIZER not in arrays:
        return spell
    piece_of: Callable[[int], str | None] = Tokenizer.from_str(arrays[TOKENIZER].tobytes().decode()).id_to_token

    def spelled(token: int) -> str:
        text = spell(token)
        return as_bytes(piece_of(token) or "") or text if _UNKNOWN in text else text

    return spelled


def as_bytes(piece: str) -> str:
    """A vocabulary entry written as bytes: <0xE2>, or letters that stand for bytes. Empty where it is neither."""
    if match := _BYTE_PIECE.fullmatch(piece):
        return f"\\x{match[1]}"
    if all(letter in _BYTE_OF for letter in piece):
        return "".join(f"\\x{_BYTE_OF[letter]:02X}" for letter in piece)
    return ""


def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level vocabularies write bytes: printable Latin-1 as it is, the others from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unprintable = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(unprintable)}


_BYTE_OF = _byte_letters()
