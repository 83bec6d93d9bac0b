"""Absorption across layers against toys whose truth is known by construction, and against the measure of one layer.

A row's source says its letter and, for two words in twenty, which word it is. Letters' features fall silent on those
words, and the words' own features carry the letter there: a tenth of the words is absorbed.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cache.open import open_cache
from cache.reader import CacheReader
from common.errors import MismatchError
from evaluate.absorption.first_letter import absorption_scorer
from evaluate.joint.absorption import JointAbsorption, mean_scores
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.rules.relu import ReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

LETTERS, WORDS, ABSORBED, STRENGTH, NOISE = 26, 20, 2, 3.0, 24
D_SOURCE, D_TARGET = LETTERS * (1 + ABSORBED), LETTERS + NOISE
PREFIXES = (LETTERS, D_SOURCE)
TRUTH = ABSORBED / WORDS
OWN_WORDS = torch.arange(LETTERS * ABSORBED)

Probes = Callable[..., JointAbsorption]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """So plain a toy is ranked after few steps, no letter has more main features, and words come in several blocks."""
    monkeypatch.setattr("evaluate.absorption.logistic.FISTA_ITERATIONS", 60)
    monkeypatch.setattr("evaluate.absorption.score.MAX_MAIN", 3)
    monkeypatch.setattr("evaluate.joint.absorption.ENCODED_WORDS", 300)


def words_of(layer: int, *, in_target: bool) -> dict[str, torch.Tensor]:
    """Test and training words; the target has letters, or noise alone."""
    letter = torch.arange(LETTERS).repeat_interleave(WORDS).repeat(2)
    word = torch.arange(len(letter)) % WORDS
    row = torch.arange(len(letter))
    source = torch.zeros(len(letter), D_SOURCE)
    source[row, letter] = STRENGTH
    own = word < ABSORBED
    source[row[own], LETTERS + letter[own] * ABSORBED + word[own]] = STRENGTH
    target = torch.randn(len(letter), D_TARGET, generator=torch.Generator().manual_seed(layer))
    if in_target:
        target[:, :LETTERS] = 0
        target[row, letter] = STRENGTH
    split = (row >= LETTERS * WORDS).to(torch.uint8)
    return {"source": source, "target": target, "letter": letter, "split": split}


@pytest.fixture(scope="module")
def readers(write_toy_cache: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, CacheReader]:
    """They stand for their fingerprints alone: no row is read."""
    cache = write_toy_cache(tmp_path_factory.mktemp("caches") / "cache", held_out_rows=20)
    return {3: open_cache(cache), 4: open_cache(cache)}


@pytest.fixture
def probes(readers: dict[int, CacheReader], tmp_path: Path) -> Probes:
    def write(*, in_target: bool, layers: tuple[int, ...] = (3, 4), words: str = "word") -> JointAbsorption:
        for layer in layers:
            folder = tmp_path / str(layer)
            folder.mkdir()
            arrays = words_of(layer, in_target=in_target)
            save_file(arrays, folder / "probe.safetensors")
            about = {"version": 1, "kind": "first-letter", "fingerprint": readers[layer].fingerprint}
            about["words"] = [words if layer == 4 else "word"] * len(arrays["letter"])
            (folder / "probe.json").write_text(json.dumps(about))
        return JointAbsorption(readers, {layer: tmp_path / str(layer) for layer in readers})

    return write


def piece(*, letters: bool, own_words: bool, targets: int, in_target: bool) -> Transcoder:
    """Features of letters and of words, or silent ones in their place; the same decoder to each of its ``targets``."""
    W_enc = torch.eye(D_SOURCE)
    b_enc = torch.zeros(D_SOURCE)
    if in_target:
        W_enc[OWN_WORDS // ABSORBED, LETTERS + OWN_WORDS] = -100
        W_enc[LETTERS + OWN_WORDS, LETTERS + OWN_WORDS] = math.sqrt(2)
    elif own_words:
        W_enc[OWN_WORDS // ABSORBED, LETTERS + OWN_WORDS] = -1
        W_enc[LETTERS + OWN_WORDS, LETTERS + OWN_WORDS] = math.sqrt(0.5)
        W_enc[LETTERS + OWN_WORDS, OWN_WORDS // ABSORBED] = math.sqrt(0.5)
        b_enc[LETTERS:] = -2.5
    b_enc[:LETTERS] -= 0 if letters else 1000
    b_enc[LETTERS:] -= 0 if own_words else 1000
    W_dec = torch.zeros(D_SOURCE, D_TARGET)
    W_dec[:LETTERS, :LETTERS] = torch.eye(LETTERS)
    W_dec[LETTERS + OWN_WORDS, OWN_WORDS // ABSORBED] = math.sqrt(0.5)
    W_dec[LETTERS + OWN_WORDS, LETTERS + OWN_WORDS % NOISE] = math.sqrt(0.5)
    arrays = (W_enc, b_enc, W_dec.repeat(1, targets), torch.zeros(targets * D_TARGET))
    return Transcoder(*arrays, rule=ReLU(), prefixes=PREFIXES)


def test_absorbers_of_one_layer_take_words_from_features_of_another(probes: Probes) -> None:
    """Layer 3 has the letters' features, which write to both targets, and layer 4 those of the words: what they write
    to layer 4 is absorption there, and layer 3 just leaves those words out."""
    pieces = [
        piece(letters=True, own_words=False, targets=2, in_target=True),
        piece(letters=False, own_words=True, targets=1, in_target=True),
    ]
    first, second = probes(in_target=True).scores(CrossLayerTranscoder(pieces, layers=(3, 4), window=1))
    assert first["space"] == second["space"] == "target"
    assert [entry["prefix"] for entry in second["per_prefix"]] == list(PREFIXES)
    assert first["score"] == 0
    assert [entry["score"] for entry in second["per_prefix"]] == pytest.approx([0, TRUTH], abs=0.02)
    assert second["full_absorption_rate"] == pytest.approx(TRUTH, abs=0.02)
    assert second["per_prefix"][-1]["per_letter"]["c"]["main"] == ["3/2"]
    assert mean_scores([first, second], prefixes=2) == pytest.approx([0, TRUTH / 2], abs=0.01)


def test_in_the_source_every_layer_has_its_own_features(probes: Probes) -> None:
    pieces = [
        piece(letters=True, own_words=True, targets=2, in_target=False),
        piece(letters=True, own_words=False, targets=1, in_target=False),
    ]
    first, second = probes(in_target=False).scores(CrossLayerTranscoder(pieces, layers=(3, 4), window=1))
    assert first["space"] == second["space"] == "source"
    assert first["score"] == pytest.approx(TRUTH, abs=0.02)
    assert second["score"] == 0
    assert first["per_prefix"][-1]["per_letter"]["c"]["main"] == ["3/2"]
    assert second["per_prefix"][-1]["per_letter"]["c"]["main"] == ["4/2"]


def without_main(fields: dict[str, Any]) -> dict[str, Any]:
    """Main features have another name where there are several layers."""
    found = json.loads(json.dumps(fields))
    for entry in found["per_prefix"]:
        for letter in entry["per_letter"].values():
            letter["main"] = [int(str(name).rpartition("/")[2]) for name in letter["main"]]
    return found


@pytest.mark.parametrize("in_target", [True, False])
def test_a_window_of_zero_has_the_scores_of_its_transcoders(
    probes: Probes, readers: dict[int, CacheReader], tmp_path: Path, in_target: bool
) -> None:
    joint = probes(in_target=in_target)
    alone = {layer: piece(letters=True, own_words=layer == 3, targets=1, in_target=in_target) for layer in (3, 4)}
    for layer, fields in zip((3, 4), joint.scores(CrossLayerTranscoder.of_set(alone)), strict=True):
        expected = absorption_scorer(readers[layer], tmp_path / str(layer))(alone[layer])
        assert expected["score"] is not None
        assert without_main(fields) == without_main(expected)


def test_selection_over_layers_decides_what_is_scored(probes: Probes) -> None:
    """Layer 3 is louder and takes all two places a row: nothing of layer 4 is left to carry a letter."""
    loud = piece(letters=True, own_words=True, targets=2, in_target=False)
    loud = loud.replaced(W_enc=loud.W_enc * 100, b_enc=(loud.b_enc + 10) * 100, rule=TopK(2))
    quiet = piece(letters=True, own_words=True, targets=1, in_target=False).replaced(rule=TopK(2))
    dictionary = CrossLayerTranscoder([loud, quiet], layers=(3, 4), window=1, top_k=1, over_layers=True)
    joint = probes(in_target=False)
    assert "carries 0 of 26 letters" in joint.scores(dictionary)[1]["reason"]
    apart = CrossLayerTranscoder([loud, quiet], layers=(3, 4), window=1)
    assert joint.scores(apart)[1]["score"] is not None


def test_a_layer_without_a_probe_has_a_reason(probes: Probes) -> None:
    pieces = [piece(letters=True, own_words=True, targets=targets, in_target=True) for targets in (2, 1)]
    dictionary = CrossLayerTranscoder(pieces, layers=(3, 4), window=1)
    first, second = probes(in_target=True, layers=(4,)).scores(dictionary)
    assert first["reason"].startswith("there is no probe cache")
    assert second["reason"].startswith("of layer 3, there is no probe cache")
    assert mean_scores([first, second], prefixes=2) == [None, None]


def test_probes_of_different_words_are_refused(probes: Probes) -> None:
    with pytest.raises(MismatchError, match="layers 3 and 4 are of different words"):
        probes(in_target=True, words="other")
