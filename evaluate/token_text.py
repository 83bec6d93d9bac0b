"""Token ids as text, by the tokenizer that the harvest stored with the cache."""

from collections.abc import Callable, Mapping

import numpy as np
from tokenizers import Tokenizer

TOKENIZER = "tokenizer.json"

Speller = Callable[[int], str]


def speller(arrays: Mapping[str, np.ndarray]) -> Speller:
    """One token as text; its id in brackets where the cache has no tokenizer."""
    if TOKENIZER not in arrays:
        return lambda token: f"[{token}]"
    tokenizer = Tokenizer.from_str(arrays[TOKENIZER].tobytes().decode())
    return lambda token: tokenizer.decode([token], skip_special_tokens=False)
