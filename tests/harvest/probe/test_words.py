"""The words and prompts of the probe by their settings."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from common.errors import UsageError
from harvest.model.tokenizer import ModelTokenizer
from harvest.probe.words import choose_words, probe_contexts

WORDS = [f"{a}{b}{c}" for a in "abc" for b in "aeiou" for c in "nt"]


def tokenizer(words=WORDS, *, begins_with_bos=True):
    """Every character and every word with a space before it is one token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<bos>", *alphabet])}
    vocabulary |= {f"Ġ{word}": len(vocabulary) + index for index, word in enumerate(words)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return ModelTokenizer(backend=backend, bos=0, special_ids=(0,), begins_with_bos=begins_with_bos)


@pytest.mark.parametrize("per_letter", [3, 500])
def test_no_letter_has_more_words_than_asked_for(per_letter):
    chosen = choose_words(tokenizer(), per_letter=per_letter)
    counts = [chosen.letters.count(letter) for letter in range(3)]
    assert counts == [min(per_letter, 10)] * 3
    assert list(chosen.words) == sorted(chosen.words)


@pytest.mark.parametrize("solved", [1, 4])
def test_a_prompt_shows_as_many_solved_lines_as_asked_for_of_other_training_words(solved):
    knows = tokenizer()
    words = choose_words(knows)
    test_words = {word for word, test in zip(words.words, words.test, strict=True) if test}
    for word, context in zip(
        words.words, probe_contexts(knows, words, positions=900, solved_lines=solved), strict=True
    ):
        text = knows.backend.decode(context[1:].tolist())
        shown = [line.split()[0] for line in text.splitlines() if "has the first letter" in line]
        assert len(shown) == solved
        assert word not in shown
        assert not test_words & set(shown)
        assert all(f"{example} has the first letter: {example[0].upper()}" in text for example in shown)


def test_a_prompt_that_is_too_long_shows_fewer_lines_and_begins_as_the_tokenizer_does():
    knows = tokenizer(begins_with_bos=False)
    words = choose_words(knows)
    for token, context in zip(words.tokens, probe_contexts(knows, words, positions=60), strict=True):
        assert len(context) <= 60
        assert context[0] != 0
        assert context[-1] == token


def test_a_tokenizer_without_words_is_refused():
    with pytest.raises(UsageError, match="no probe"):
        choose_words(tokenizer(words=[]))
