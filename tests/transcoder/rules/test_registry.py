"""A new rule is one class and one line in the registry: a toy one trains, is saved, loaded and evaluated."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from cache.config import CacheSettings
from cache.writer import CacheWriter
from common.errors import UsageError
from tests.helpers.evaluation import evaluate
from tests.helpers.training import train
from train.config import TrainSettings
from transcoder.formats.native import load_transcoder
from transcoder.rules.registry import RULES, Entry, make_rule, trainable
from transcoder.rules.rule import Rule, Scope
from transcoder.rules.topk import select_topk
from transcoder.sparse_code import SparseCode


class Halves(Rule):
    """Top-k that sees only the first half of the dictionary."""

    name: ClassVar[str] = "halves"
    scope: ClassVar[Scope] = "row"

    def select(self, pre: torch.Tensor) -> SparseCode:
        seen = torch.arange(pre.shape[1], device=pre.device) < pre.shape[1] // 2
        return select_topk(pre.masked_fill(~seen, -torch.inf), top_k=self.kept(1))


def write_cache(path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    settings = CacheSettings(chunk_rows=16, shard_rows=64, segment_rows=256)
    sizes = {"d_source": 8, "d_target": 6, "train_rows": 256, "held_out_rows": 64, "special_ids": [0], "arrays": {}}
    identity = {"model": "tiny", "layer": 1, "source_site": "mlp_in", "target_site": "mlp_out", "context": 16}
    with CacheWriter(path, identity=identity, settings=settings, **sizes) as writer:
        for held_out, rows in ((False, 256), (True, 64)):
            source, target = (torch.randn(rows, width, generator=generator).bfloat16() for width in (8, 6))
            number = np.arange(rows)
            columns = ((1 + number % 7).astype(np.int32), number // 16, (number % 16).astype(np.int32))
            writer.append(source, target, *columns, held_out=held_out, cursor=None)
    return path


def test_a_toy_rule_trains_and_is_saved_loaded_and_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "halves", Entry(Halves, trains=True))  # the one line
    cache = write_cache(tmp_path / "cache")
    settings = TrainSettings(
        prefixes=(8, 32), top_k=3, activation="halves", steps=8, batch_rows=64, warmup_steps=2, held_out_rows=64
    )
    train(cache, tmp_path / "main", settings)
    transcoder = load_transcoder(tmp_path / "main")
    assert isinstance(transcoder.rule, Halves)
    assert transcoder.config["activation"] == "halves"
    code = transcoder.encode(torch.randn(20, 8, generator=torch.Generator().manual_seed(3)))
    assert not code[:, 16:].any()
    assert code.any()
    metrics = evaluate(cache, tmp_path / "main", tmp_path / "report")
    assert metrics["transcoder"]["activation"] == "halves"
    assert 0 < metrics["l0"] <= 3


def test_a_rule_that_is_unknown_or_cannot_train_is_refused_with_those_that_can() -> None:
    for name in ("softmax", "relu"):
        with pytest.raises((ValueError, UsageError), match="topk, batchtopk, jumprelu"):
            TrainSettings(activation=name)


def test_every_entry_is_the_class_of_its_name() -> None:
    assert trainable() == ["topk", "batchtopk", "jumprelu"]
    for name, entry in RULES.items():
        assert entry.load().name == name
    assert make_rule("topk", 7).top_k == 7
