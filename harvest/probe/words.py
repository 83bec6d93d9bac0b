"""The words of the first-letter probe, and their prompts.

A context is BOS, some solved lines in a random order, and the word:

    " mirth has the first letter: M\\n tartan has the first letter: T\\n ... word"

Words are the tokenizer's own tokens of the form " word", so that each is one row.
"""

import random
import re
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from common.errors import UsageError
from harvest.model.tokenizer import ModelTokenizer

PROMPT = " {word} has the first letter: {letter}\n"
# A fifth of the words is for the scores; the linear probes are fitted on the others.
TEST_SHARE = 0.2
SEED = 0
"""Of the choice of words and of the prompts' examples. It is recorded: with another seed it is another probe."""
_WORD = re.compile(r"[Ġ▁]([a-z]{2,})")


@dataclass(frozen=True)
class ProbeWords:
    """Words of one token each, in alphabetical order, and which of them are for testing."""

    words: tuple[str, ...]
    tokens: tuple[int, ...]
    test: tuple[bool, ...]

    @property
    def letters(self) -> list[int]:
        """The first letter of each word: 0 for a to 25 for z."""
        return [ord(word[0]) - ord("a") for word in self.words]


def choose_words(tokenizer: ModelTokenizer, *, per_letter: int = 500) -> ProbeWords:
    """The tokenizer's lower-case words of one token with a space before, at most ``per_letter`` for each letter.

    Raises UsageError when there are none.
    """
    found = {
        match[1]: int(token)
        for text, token in sorted(tokenizer.backend.get_vocab().items())
        if (match := _WORD.fullmatch(text)) and tokenizer.backend.decode([token]).strip() == match[1]
    }
    if not found:
        raise UsageError("The tokenizer has no token that is a word with a space before it, so there is no probe.")
    generator = random.Random(SEED)
    words: list[tuple[str, bool]] = []
    for letter in sorted({word[0] for word in found}):
        own = sorted(word for word in found if word[0] == letter)
        own = sorted(generator.sample(own, min(len(own), per_letter)))
        test = set(generator.sample(own, round(TEST_SHARE * len(own))))
        words += [(word, word in test) for word in own]
    return ProbeWords(
        words=tuple(word for word, _ in words),
        tokens=tuple(found[word] for word, _ in words),
        test=tuple(test for _, test in words),
    )


def probe_contexts(
    tokenizer: ModelTokenizer, words: ProbeWords, *, positions: int, solved_lines: int = 10
) -> list[Int[Tensor, " pos"]]:
    """For each word: BOS, as many solved lines of other training words as fit, and the word's token."""
    train = [word for word, test in zip(words.words, words.test, strict=True) if not test]
    contexts: list[Int[Tensor, " pos"]] = []
    for number, (word, token) in enumerate(zip(words.words, words.tokens, strict=True)):
        generator = random.Random(f"{SEED} {number}")
        drawn = generator.sample(train, min(len(train), solved_lines + 1))
        shown = [example for example in drawn if example != word][:solved_lines]
        lines = [PROMPT.format(word=example, letter=example[0].upper()) for example in shown]
        encoded = tokenizer.backend.encode_batch_fast(lines, add_special_tokens=False)
        examples: list[int] = []
        for encoding in encoded:
            if len(examples) + len(encoding.ids) + 2 <= positions:
                examples += encoding.ids
        start = [tokenizer.bos] if tokenizer.begins_with_bos else []
        contexts.append(torch.tensor([*start, *examples, token]))
    return contexts
