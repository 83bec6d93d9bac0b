"""Words whose letters can be read, for every test of absorption."""

from collections.abc import Callable
from functools import cache

import pytest
import torch

from evaluate.absorption.letters import LetterProbes, Space, fit_letter_probes
from evaluate.absorption.probe_set import ProbeSet

LETTERS, WORDS, STRENGTH, NOISE_DIMS = 26, 40, 3.0, 24


@pytest.fixture(scope="session")
def words() -> ProbeSet:
    """26 letters of 40 words in each split; the target is 3 along the letter's own axis, and noise on other axes."""
    generator = torch.Generator().manual_seed(0)
    letter = torch.arange(LETTERS).repeat_interleave(WORDS).repeat(2)
    target = torch.zeros(len(letter), LETTERS + NOISE_DIMS)
    target[torch.arange(len(letter)), letter] = STRENGTH
    target[:, LETTERS:] = torch.randn(len(letter), NOISE_DIMS, generator=generator)
    test = torch.arange(len(letter)) >= LETTERS * WORDS
    return ProbeSet(source=target.clone(), target=target, letter=letter, test=test, about={"model_parameters": 10})


@pytest.fixture(scope="session")
def probes_of(words: ProbeSet) -> Callable[[Space], LetterProbes]:
    """The letters' probes in either space."""
    return cache(lambda space: fit_letter_probes(words, space))
