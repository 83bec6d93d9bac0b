"""Which letters a linear probe reads, and in which of the two spaces, on words whose letters are known."""

from dataclasses import replace

import pytest
import torch

from evaluate.absorption.letters import MIN_LETTERS, fit_letter_probes, readability, source_spread
from evaluate.absorption.probe_set import LETTERS, ProbeSet

WORDS, NOISE = 12, 6


@pytest.fixture(scope="module")
def words() -> ProbeSet:
    """Twelve words a letter in each split. Both spaces: 3 along the letter's own axis, and noise on six others."""
    generator = torch.Generator().manual_seed(0)
    letter = torch.arange(LETTERS).repeat_interleave(WORDS).repeat(2)
    rows = torch.cat([torch.eye(LETTERS)[letter] * 3, torch.randn(len(letter), NOISE, generator=generator)], dim=1)
    test = torch.arange(len(letter)) >= LETTERS * WORDS
    return ProbeSet(source=rows, target=rows.clone(), letter=letter, test=test, about={})


def without_letters(rows: torch.Tensor, count: int) -> torch.Tensor:
    """The same rows, in which the first ``count`` letters leave no trace."""
    rows = rows.clone()
    rows[:, :count] = torch.randn(len(rows), count, generator=torch.Generator().manual_seed(1))
    return rows


def test_probes_point_along_the_letters_and_are_scored_on_test_words(words: ProbeSet) -> None:
    probes = fit_letter_probes(words)
    assert probes.counted == list(range(LETTERS))
    torch.testing.assert_close(probes.direction.norm(dim=0), torch.ones(LETTERS))
    assert probes.direction[:LETTERS].argmax(dim=0).tolist() == list(range(LETTERS))
    assert not probes.right[~words.test].any()
    assert torch.equal(probes.right.nonzero()[:, 1], words.letter[probes.right.any(dim=1)])


def test_a_letter_that_leaves_no_trace_does_not_count(words: ProbeSet) -> None:
    probes = fit_letter_probes(replace(words, target=without_letters(words.target, 2)))
    assert probes.counted == list(range(2, LETTERS))


def test_the_probe_of_the_source_does_not_depend_on_the_scale_of_its_dimensions(words: ProbeSet) -> None:
    scale = torch.logspace(-0.5, 0.5, words.source.shape[1])
    scaled = replace(words, source=words.source * scale)
    torch.testing.assert_close(source_spread(scaled), source_spread(words) * scale)
    plain, rescaled = (fit_letter_probes(each, "source") for each in (words, scaled))
    torch.testing.assert_close(plain.direction, rescaled.direction, atol=1e-3, rtol=1e-3)


def test_a_dimension_that_never_varies_divides_by_no_zero(words: ProbeSet) -> None:
    source = words.source.clone()
    source[:, -1] = 7.0
    constant = replace(words, source=source)
    assert source_spread(constant).min() > 0
    assert torch.isfinite(fit_letter_probes(constant, "source").direction).all()


@pytest.mark.parametrize(
    ("lost", "space", "reason"),
    [
        ((0, 26), "target", "26 of 26 letters can be read off the target"),
        ((26, 0), "source", "26 of 26 letters can be read off the source, 0 off the target"),
        ((26, 16), None, f"10 on the source, and {MIN_LETTERS} are needed"),
    ],
)
def test_the_target_is_used_if_enough_letters_can_be_read_from_it(
    words: ProbeSet, lost: tuple[int, int], space: str | None, reason: str
) -> None:
    target, source = (without_letters(words.target, count) for count in lost)
    found = readability(replace(words, target=target, source=source))
    assert (found.probes.space if found.probes else None) == space
    assert reason in found.reason
    if space is None:
        assert found.best.space == "source"
