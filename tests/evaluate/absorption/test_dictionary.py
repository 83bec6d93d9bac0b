"""A whole dictionary's absorption: its prefixes, the space that is used, and reasons in place of a score."""

from dataclasses import replace

import pytest
import torch

from evaluate.absorption.dictionary import measure_absorption
from evaluate.absorption.letters import readability
from evaluate.absorption.probe_set import ProbeSet
from transcoder.rules.relu import ReLU
from transcoder.transcoder import Transcoder


def identity_dictionary(words: ProbeSet, prefixes: tuple[int, ...]) -> Transcoder:
    width = words.target.shape[1]
    arrays = (torch.eye(width), torch.zeros(width), torch.eye(width), torch.zeros(width))
    return Transcoder(*arrays, rule=ReLU(), prefixes=prefixes)


def test_every_prefix_is_scored_on_its_own_features(words: ProbeSet) -> None:
    result = measure_absorption(identity_dictionary(words, (13, 50)), words, readability(words))
    assert [entry["prefix"] for entry in result["per_prefix"]] == [13, 50]
    assert result["score"] == result["per_prefix"][-1]["score"] == 0
    letters = result["per_prefix"][0]["per_letter"]
    assert letters["a"]["main"] == [0]
    assert all(feature < 13 for letter in letters.values() for feature in letter["main"])
    assert result["per_prefix"][-1]["k_sparse_f1"]["1"] > 0.99
    assert "under 1 B parameters" in result["exploratory"]


def test_the_source_is_used_where_the_target_does_not_tell_letters(words: ProbeSet) -> None:
    noise = torch.randn(words.target.shape, generator=torch.Generator().manual_seed(5))
    silent = replace(words, target=noise)
    assert readability(words).best.space == "target"
    found = readability(silent)
    assert found.probes is not None
    assert found.probes.space == "source"
    result = measure_absorption(identity_dictionary(silent, (13, 50)), silent, found)
    assert result["space"] == "source"
    assert result["score"] == 0
    assert result["per_prefix"][0]["score"] is None
    assert "13 carries 13 of 26 letters" in result["per_prefix"][0]["reason"]


def test_a_source_whose_dimensions_are_scaled_has_the_same_score(words: ProbeSet) -> None:
    """The same code is read from it by encoder rows that are scaled the other way."""
    silent = replace(words, target=torch.randn(words.target.shape, generator=torch.Generator().manual_seed(5)))
    width = words.source.shape[1]
    scale = torch.logspace(-1.5, 1.5, width)[torch.randperm(width, generator=torch.Generator().manual_seed(2))]
    plain = identity_dictionary(silent, (width,))
    scaled_words = replace(silent, source=silent.source * scale)
    scaled = plain.replaced(W_enc=torch.diag(1 / scale))
    expected = measure_absorption(plain, silent, readability(silent))
    found = measure_absorption(scaled, scaled_words, readability(scaled_words))
    assert expected["score"] is not None
    assert found["score"] == pytest.approx(expected["score"], abs=1e-4)
    assert found["per_prefix"][0]["k_sparse_f1"] == pytest.approx(expected["per_prefix"][0]["k_sparse_f1"], abs=1e-3)


def test_too_few_letters_are_refused_with_a_reason(words: ProbeSet) -> None:
    target = words.target.clone()
    target[:, :10] = torch.randn(len(target), 10, generator=torch.Generator().manual_seed(5))
    noisy = ProbeSet(source=target, target=target, letter=words.letter, test=words.test, about={})
    result = measure_absorption(identity_dictionary(noisy, (20, 50)), noisy, readability(noisy))
    assert result["score"] is None
    assert [entry["score"] for entry in result["per_prefix"]] == [None, None]
    assert result["space"] is None
    assert "16 of 26 letters" in result["reason"]
    assert "cannot be read off this layer" in result["reason"]
