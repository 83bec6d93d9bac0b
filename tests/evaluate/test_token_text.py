"""Tokens are spelled by the tokenizer in the cache, special ones included."""

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from evaluate.token_text import TOKENIZER, speller

FILE = Path(__file__).parents[2] / "models" / "gpt2-stdlib" / "tokenizer.json"


def test_every_token_is_spelled_as_the_tokenizer_decodes_it() -> None:
    tokenizer = Tokenizer.from_file(str(FILE))
    spell = speller({TOKENIZER: np.frombuffer(FILE.read_bytes(), dtype=np.uint8)})
    ids = tokenizer.encode("def read(path):\n    return path", add_special_tokens=False).ids
    assert "".join(map(spell, ids)) == "def read(path):\n    return path"
    special = next(iter(tokenizer.get_added_tokens_decoder()))
    assert spell(special) == str(tokenizer.get_added_tokens_decoder()[special])


def test_without_a_tokenizer_it_is_its_number() -> None:
    assert speller({})(42) == "[42]"
