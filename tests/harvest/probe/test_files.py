"""The folder of a probe: pieces that are kept and checked, what is written when all are there, and its removal."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from cache.config import CacheSettings
from cache.writer import manifest_of
from harvest.config import HarvestSettings
from harvest.model.source import find_model
from harvest.probe import files
from harvest.probe.files import Probe, remove_probe
from harvest.probe.words import ProbeWords
from harvest.request import HarvestRequest

WORDS = ProbeWords(words=("ab", "ac", "bc"), tokens=(1, 2, 3), test=(False, True, False))


@pytest.fixture
def probe(model_folders, tmp_path, monkeypatch) -> Probe:
    """A probe of three words, in pieces of two and one."""
    monkeypatch.setattr(files, "PIECE_WORDS", 2)
    manifest = manifest_of(
        identity={}, settings=CacheSettings(), d_source=4, d_target=4, train_rows=8, held_out_rows=2, special_ids=[],
        arrays={},
    )  # fmt: skip
    request = HarvestRequest("model", {1: tmp_path / "cache"}, settings=HarvestSettings())
    contexts = [torch.tensor([0, token]) for token in WORDS.tokens]
    source = find_model(str(model_folders["gpt2"]))
    return Probe(request, {1: tmp_path / "probe"}, source, WORDS, contexts, {1: manifest})


def rows(words: int, value: float) -> dict[str, torch.Tensor]:
    return {"mlp_in": torch.full((words, 4), value).bfloat16(), "mlp_out": torch.full((words, 4), -value).bfloat16()}


def test_pieces_become_the_probe(probe):
    assert list(probe.starts) == [0, 2]
    for start in probe.starts:
        assert not probe.has_piece(1, start)
        probe.write_piece(1, start, rows(len(probe.piece(start)), 1.0 + start))
        assert probe.has_piece(1, start)
    assert probe.missing == [1]
    probe.complete(1)
    assert probe.missing == []
    folder = probe.folders[1]
    assert sorted(path.name for path in folder.iterdir()) == ["probe.json", "probe.safetensors"]
    tensors = load_file(folder / "probe.safetensors")
    assert tensors["source"][:, 0].tolist() == [1, 1, 3]
    assert tensors["target"][:, 0].tolist() == [-1, -1, -3]
    assert tensors["letter"].tolist() == [0, 0, 1]
    assert tensors["split"].tolist() == [0, 1, 0]
    about = json.loads((folder / "probe.json").read_text())
    assert {key: about[key] for key in probe.about(1)} == probe.about(1)
    remove_probe(folder)
    assert probe.missing == [1]


def test_a_damaged_piece_or_one_of_another_probe_does_not_count(probe):
    probe.write_piece(1, 0, rows(2, 1.0))
    examples = probe.request.settings.model_copy(update={"probe_examples": 3})
    another = replace(probe, request=replace(probe.request, settings=examples))
    assert probe.has_piece(1, 0)
    assert not another.has_piece(1, 0)
    (piece,) = (probe.folders[1] / "pieces").iterdir()
    piece.write_bytes(piece.read_bytes()[:-1])
    assert not probe.has_piece(1, 0)
