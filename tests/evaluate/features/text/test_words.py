"""Tokens of single bytes are written as bytes."""

from pathlib import Path

import numpy as np

from evaluate.features.text.words import as_bytes, speller_of

TOKENIZER = Path(__file__).resolve().parents[4] / "models" / "gpt2-stdlib" / "tokenizer.json"


def test_bytes_of_both_kinds_of_vocabulary() -> None:
    assert as_bytes("<0xE2>") == "\\xE2"
    assert as_bytes("âĢ") == "\\xE2\\x80"
    assert as_bytes("語") == ""


def test_a_tokenizer_of_bytes_spells_every_token() -> None:
    spell = speller_of({"tokenizer.json": np.frombuffer(TOKENIZER.read_bytes(), dtype=np.uint8)})
    texts = [spell(token) for token in range(1, 400)]
    assert not any("�" in text for text in texts)
    assert "\\xE2" in texts


def test_without_a_tokenizer_ids_are_shown() -> None:
    assert speller_of({})(7) == "[7]"
