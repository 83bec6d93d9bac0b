"""Absorption against toys whose score is known by construction, and against the definition in plain Python."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluate.absorption.letters import LetterProbes, Space
from evaluate.absorption.probe_set import ProbeSet
from evaluate.absorption.score import absorption_fraction, score_prefix
from transcoder.sparse_code import SparseCode, largest_sums, stacked

LETTERS, WORDS, STRENGTH, NOISE_DIMS = 26, 40, 3.0, 24

ProbesOf = Callable[[Space], LetterProbes]


def selection(code: torch.Tensor) -> SparseCode:
    rows, features = (code > 0).nonzero(as_tuple=True)
    offsets = torch.searchsorted(rows, torch.arange(len(code) + 1)).int()
    return SparseCode(code[rows, features], features.int(), offsets)


def absorbed_toy(words: ProbeSet, *, absorbed: int, main_left: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Code and unit decoder rows. In each split the first ``absorbed`` words of a letter have a feature of their own,
    which takes the letter over from the main one; that keeps ``main_left`` of it."""
    code = torch.zeros(len(words.letter), LETTERS + LETTERS * absorbed)
    rows = torch.arange(len(words.letter))
    code[rows, words.letter] = STRENGTH
    number = rows % WORDS
    taken = number < absorbed
    own = LETTERS + words.letter * absorbed + number
    code[rows[taken], words.letter[taken]] = STRENGTH * main_left
    code[rows[taken], own[taken]] = STRENGTH * (1 - main_left) * math.sqrt(2)
    decoder = torch.zeros(code.shape[1], words.target.shape[1])
    decoder[:LETTERS, :LETTERS] = torch.eye(LETTERS)
    for letter in range(LETTERS):
        absorbers = slice(LETTERS + letter * absorbed, LETTERS + (letter + 1) * absorbed)
        decoder[absorbers, letter] = math.sqrt(0.5)
        decoder[absorbers, LETTERS + letter % NOISE_DIMS] = math.sqrt(0.5)
    return code, decoder


SPACES = pytest.mark.parametrize("space", ["target", "source"])
"""The toy's source is its target, and what is a decoder row in one space is an encoder row in the other."""


@pytest.mark.parametrize(("space", "absorbed"), [("target", 0), ("target", 2), ("target", 10), ("source", 2)])
def test_full_absorption_by_construction_is_found(
    words: ProbeSet, space: Space, absorbed: int, probes_of: ProbesOf
) -> None:
    code, directions = absorbed_toy(words, absorbed=absorbed, main_left=0.0)
    score = score_prefix(selection(code), words, probes_of(space), directions)
    assert score["score"] == pytest.approx(absorbed / WORDS, abs=0.02)
    assert score["full_absorption_rate"] == pytest.approx(absorbed / WORDS, abs=0.02)
    assert score["main_features_mean"] == 1


@SPACES
def test_partial_absorption_by_construction_is_found(words: ProbeSet, space: Space, probes_of: ProbesOf) -> None:
    code, directions = absorbed_toy(words, absorbed=10, main_left=0.25)
    score = score_prefix(selection(code), words, probes_of(space), directions)
    assert score["score"] == pytest.approx(0.75 * 10 / WORDS, abs=0.02)
    assert score["full_absorption_rate"] == 0


@SPACES
def test_redundancy_without_absorption_scores_0(words: ProbeSet, space: Space, probes_of: ProbesOf) -> None:
    """Every letter has twin decoder rows that share its words between them: redundant, split, and nothing absorbed."""
    code = torch.zeros(len(words.letter), 2 * LETTERS)
    rows = torch.arange(len(words.letter))
    code[rows, words.letter + LETTERS * (rows % 2)] = STRENGTH
    decoder = torch.zeros(2 * LETTERS, words.target.shape[1])
    decoder[:LETTERS, :LETTERS] = decoder[LETTERS:, :LETTERS] = torch.eye(LETTERS)
    score = score_prefix(selection(code), words, probes_of(space), decoder)
    assert score["score"] == score["full_absorption_rate"] == 0
    assert score["main_features_mean"] == 2


@SPACES
def test_scaled_rows_change_nothing(words: ProbeSet, space: Space, probes_of: ProbesOf) -> None:
    code, decoder = absorbed_toy(words, absorbed=5, main_left=0.25)
    scale = torch.logspace(-1, 1, len(decoder))[
        torch.randperm(len(decoder), generator=torch.Generator().manual_seed(1))
    ]
    probes = probes_of(space)
    # An encoder row that is twice as long makes its activation twice as large; with a decoder row it is half of it.
    scaled_code = code / scale if space == "target" else code * scale
    plain = score_prefix(selection(code), words, probes, decoder)
    scaled = score_prefix(selection(scaled_code), words, probes, decoder * scale[:, None])
    assert scaled["score"] == pytest.approx(plain["score"], abs=1e-5)
    assert scaled["k_sparse_f1"] == pytest.approx(plain["k_sparse_f1"], abs=1e-3)


def test_scaling_all_encoders_down_does_not_change_the_score_in_the_source(
    words: ProbeSet, probes_of: ProbesOf
) -> None:
    code, directions = absorbed_toy(words, absorbed=10, main_left=0.25)
    score = score_prefix(selection(code / 4), words, probes_of("source"), directions)
    assert score["score"] == pytest.approx(0.75 * 10 / WORDS, abs=0.02)


def test_a_dictionary_without_letter_features_is_not_scored_in_the_source(words: ProbeSet, probes_of: ProbesOf) -> None:
    code = torch.ones(len(words.letter), 4)
    directions = torch.eye(words.source.shape[1])[-4:]
    score = score_prefix(selection(code), words, probes_of("source"), directions)
    assert score["score"] is None
    assert "carries" in score["reason"]


def fraction_of_one_word(main: float, absorbers: float, along: float) -> float:
    if main >= along or along <= 0 or absorbers / along < 0.4:
        return 0.0
    if main <= 0:
        return 1.0
    taken = min(absorbers, along - main)
    return taken / (taken + main)


@settings(deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(-400, 400).map(lambda hundredths: hundredths / 100)] * 3), min_size=1, max_size=20)
)
def test_the_fraction_is_its_definition(triples: list[tuple[float, float, float]]) -> None:
    main, absorbers, along = (torch.tensor(column, dtype=torch.float64) for column in zip(*triples, strict=True))
    found = absorption_fraction(main, absorbers.clamp_min(0), along)
    expected = [fraction_of_one_word(m, max(a, 0.0), y) for m, a, y in triples]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-50, 50)), max_size=30), st.integers(1, 4))
def test_the_largest_of_every_row_are_summed(entries: list[tuple[int, int]], limit: int) -> None:
    rows = torch.tensor([row for row, _ in entries], dtype=torch.long)
    values = torch.tensor([float(value) for _, value in entries])
    found = largest_sums(rows, values, 6, limit=limit)
    expected = [sum(sorted((v for r, v in entries if r == row), reverse=True)[:limit]) for row in range(6)]
    assert found.tolist() == expected


def test_codes_stacked_are_the_code_of_all_rows() -> None:
    rows = torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) - 0.5
    joined = stacked([selection(piece) for piece in rows.split(3)])
    torch.testing.assert_close(joined.dense(5), rows.clamp_min(0))
    assert joined.offsets.dtype == torch.int32
