"""Absorption by the command, on a toy like a model, whose letters can be read from its rows.

A row's source says its letter and, for a few words, which word it is. The first 26 features are the letters. In the
transcoder under test each of those few words silences its letter's feature and fires one of its own, which carries the
letter too: its first prefix absorbs nothing, the whole of it as many words as there are. The other run has the letters
alone, so nothing is absorbed in it.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cache.reader import CacheReader
from nestcoder.cli import command_line
from tests.helpers.caches import write_cache as write_rows
from transcoder.formats.native import save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

LETTERS, WORDS, ABSORBED, STRENGTH, NOISE = 26, 20, 2, 3.0, 24
D_SOURCE, D_TARGET = LETTERS * (1 + ABSORBED), LETTERS + NOISE
TRUTH = ABSORBED / WORDS
PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def rows(letter: torch.Tensor, word: torch.Tensor, *, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Source and target: 3 along the letter's axis; the word's own axis for those to be absorbed; noise elsewhere."""
    source, target = torch.zeros(len(letter), D_SOURCE), torch.zeros(len(letter), D_TARGET)
    row = torch.arange(len(letter))
    source[row, letter] = target[row, letter] = STRENGTH
    own = word < ABSORBED
    source[row[own], LETTERS + letter[own] * ABSORBED + word[own]] = STRENGTH
    target[:, LETTERS:] = torch.randn(len(letter), NOISE, generator=torch.Generator().manual_seed(seed))
    return source, target


def write_cache(path: Path) -> CacheReader:
    identity = {"model": "toy", "layer": 8, "source_site": "mlp_in", "target_site": "mlp_out", "context": 20}
    splits = []
    for seed, count in enumerate((520, 5200)):
        number = torch.arange(count)
        source, target = rows(number % LETTERS, number // LETTERS % WORDS, seed=seed)
        narrow = {"document": number.numpy() // 40, "position": (number.numpy() % 20).astype(np.int32)}
        splits.append({"source": source, "target": target, "tokens": np.ones(count, np.int32), **narrow})
    sizes = {"chunk_rows": 104, "shard_rows": 520, "segment_rows": 1040}
    return CacheReader.open(write_rows(path, *splits, identity=identity, dtype="float32", **sizes))


def write_probe(folder: Path, *, fingerprint: str, readable: int = LETTERS, in_source: int = LETTERS) -> None:
    """``readable`` letters can be read off the target and ``in_source`` off the source; the others are noise."""
    folder.mkdir(parents=True)
    letter = torch.arange(LETTERS).repeat_interleave(WORDS).repeat(2)
    source, target = rows(letter, torch.arange(len(letter)) % WORDS, seed=9)
    generator = torch.Generator().manual_seed(5)
    target[:, readable:LETTERS] = torch.randn(len(letter), LETTERS - readable, generator=generator)
    if in_source < LETTERS:
        source[:, in_source:] = torch.randn(len(letter), D_SOURCE - in_source, generator=generator)
    split = (torch.arange(len(letter)) >= LETTERS * WORDS).to(torch.uint8)
    save_file(
        {"source": source.bfloat16(), "target": target.bfloat16(), "letter": letter, "split": split},
        folder / "probe.safetensors",
    )
    about = {"version": 1, "kind": "first-letter", "words": ["word"] * len(letter), "fingerprint": fingerprint}
    (folder / "probe.json").write_text(json.dumps(about | {"model_parameters": 2_000_000_000}))


def absorbing() -> Transcoder:
    words = torch.arange(LETTERS * ABSORBED)
    W_enc = torch.eye(D_SOURCE)
    W_enc[words // ABSORBED, LETTERS + words] = -100
    W_enc[LETTERS + words, LETTERS + words] = math.sqrt(2)
    W_dec = torch.zeros(D_SOURCE, D_TARGET)
    W_dec[:LETTERS, :LETTERS] = torch.eye(LETTERS)
    W_dec[LETTERS + words, words // ABSORBED] = W_dec[LETTERS + words, LETTERS + words % NOISE] = math.sqrt(0.5)
    arrays = (W_enc, torch.zeros(D_SOURCE), W_dec, torch.zeros(D_TARGET))
    return Transcoder(*arrays, rule=TopK(2), prefixes=(LETTERS, D_SOURCE))


def absorbing_in_the_source() -> Transcoder:
    """Encoders that read the letter: the main feature's loses its few words, whose own features read word and letter.

    Their bias keeps a word's feature silent on the letter's other words: (3 + 3) / sqrt(2) > 2.5 > 3 / sqrt(2).
    """
    words = torch.arange(LETTERS * ABSORBED)
    W_enc = torch.eye(D_SOURCE)
    W_enc[words // ABSORBED, LETTERS + words] = -1
    W_enc[LETTERS + words, LETTERS + words] = W_enc[LETTERS + words, words // ABSORBED] = math.sqrt(0.5)
    b_enc = torch.zeros(D_SOURCE)
    b_enc[LETTERS:] = -2.5
    W_dec = torch.nn.functional.normalize(
        torch.randn(D_SOURCE, D_TARGET, generator=torch.Generator().manual_seed(3)), dim=1
    )
    return Transcoder(W_enc, b_enc, W_dec, torch.zeros(D_TARGET), rule=TopK(2), prefixes=(LETTERS, D_SOURCE))


def plain() -> Transcoder:
    arrays = (torch.eye(D_SOURCE)[:LETTERS], torch.zeros(LETTERS), torch.eye(D_TARGET)[:LETTERS], torch.zeros(D_TARGET))
    return Transcoder(*arrays, rule=TopK(2))


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    folder = tmp_path / "toy" / "layer08"
    write_cache(folder / "cache")
    save_transcoder(absorbing(), folder / "transcoder" / "main", config={})
    save_transcoder(plain(), folder / "transcoder" / "plain", config={})
    return folder


def evaluate(layer: Path, *options: str) -> None:
    given = ["--set", f"runs={layer.parents[1]}", "--set", "evaluate.bootstrap=20", "--model", "toy", *options]
    command_line.main(args=[*given, "evaluate", "--layer", "8", "--against", str(layer / "transcoder" / "plain")],
                      standalone_mode=False)  # fmt: skip


def test_the_command_says_what_is_absorbed(layer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_probe(layer / "probe" / "first-letter", fingerprint=CacheReader.open(layer / "cache").fingerprint)
    evaluate(layer, "--json")
    metrics = json.loads(capsys.readouterr().out)["8"]
    report = layer / "report" / "main"
    assert metrics == json.loads((report / "metrics.json").read_text()) | {"comparison": metrics["comparison"]}
    check_scores(metrics["absorption_first_letter"])
    check_comparison(metrics["comparison"], json.loads((report / "other_metrics.json").read_text()))
    summary = (report / "summary.txt").read_text()
    assert "absorption 0.100 (by prefix 26: 0.000, 78: 0.100), full 0.100. Exploratory: the dictionary has" in summary
    assert "words of 26 letters; F1 of the probes 1.00, of a letter's best single feature 0." in summary
    assert [line.split()[-1] for line in summary.splitlines() if line.startswith(("main  ", "plain  "))][:3] == [
        "0.000", "0.100", "0.000",
    ]  # fmt: skip


def check_scores(absorption: dict[str, Any]) -> None:
    assert absorption["score"] == pytest.approx(TRUTH, abs=0.02)
    assert absorption["full_absorption_rate"] == pytest.approx(TRUTH, abs=0.02)
    first, last = absorption["per_prefix"]
    assert (first["prefix"], first["score"]) == (LETTERS, 0)
    assert last["score"] == absorption["score"]
    assert last["per_letter"]["c"]["main"] == [2]
    assert absorption["letters_counted"] == LETTERS
    fields = {f"absorption_first_letter.{name}" for name in documented(absorption)}
    assert fields == set(re.findall(r"`(absorption_first_letter\.[^`]+)`", PAGE.read_text()))


def check_comparison(document: dict[str, Any], reference: dict[str, Any]) -> None:
    assert [entry["absorption_first_letter"] for entry in document["ours"]["per_prefix"]] == pytest.approx([0, TRUTH])
    assert document["theirs"]["absorption_first_letter"] == reference["absorption_first_letter"]["score"] == 0
    assert not [name for name in document["not_compared"] if "absorption" in name]


def documented(value: Any, name: str = "") -> set[str]:
    """Names of the fields; a letter's stand for every letter's, a count's for every count."""
    if isinstance(value, dict):
        wildcard = {"a": "*", "1": "*"}
        inner = {wildcard.get(key, key): inside for key, inside in value.items() if len(key) > 1 or key in wildcard}
        inner.pop("10", None)
        return {field for key, inside in inner.items() for field in documented(inside, f"{name}.{key}".lstrip("."))}
    if isinstance(value, Sequence) and value and isinstance(value[0], dict):
        return documented(value[0], name + "[]")
    return {name}


def test_too_few_readable_letters_have_a_reason_and_no_score(layer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fingerprint = CacheReader.open(layer / "cache").fingerprint
    write_probe(layer / "probe" / "first-letter", fingerprint=fingerprint, readable=19, in_source=0)
    evaluate(layer, "--json")
    metrics = json.loads(capsys.readouterr().out)["8"]
    assert metrics["absorption_first_letter"]["score"] is None
    assert metrics["absorption_first_letter"]["space"] is None
    assert "19 of 26 letters" in metrics["absorption_first_letter"]["reason"]
    assert "cannot be read off this layer" in metrics["absorption_first_letter"]["reason"]
    assert "not measured: 19 of 26 letters" in (layer / "report" / "main" / "summary.txt").read_text()
    assert {"ours: absorption_first_letter", "theirs: absorption_first_letter"} <= set(
        metrics["comparison"]["not_compared"]
    )


def test_letters_that_only_the_source_has_are_scored_there(layer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_transcoder(absorbing_in_the_source(), layer / "transcoder" / "main", config={})
    fingerprint = CacheReader.open(layer / "cache").fingerprint
    write_probe(layer / "probe" / "first-letter", fingerprint=fingerprint, readable=2)
    evaluate(layer, "--json")
    document = json.loads(capsys.readouterr().out)["8"]
    absorption = document["absorption_first_letter"]
    assert (absorption["space"], absorption["letters_on_target"], absorption["letters_on_source"]) == ("source", 2, 26)
    assert absorption["space_reason"] == "26 of 26 letters can be read off the source, 2 off the target"
    assert absorption["score"] == pytest.approx(TRUTH, abs=0.02)
    assert absorption["full_absorption_rate"] == pytest.approx(TRUTH, abs=0.02)
    assert absorption["per_prefix"][0]["score"] == 0
    assert document["comparison"]["theirs"]["absorption_first_letter"] == 0
    assert "It is scored in the source" in (layer / "report" / "main" / "summary.txt").read_text()
