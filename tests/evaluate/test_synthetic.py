"""The script that readers try the comparison with: an evaluation finds the L0 and FVU that it promises."""

import json
from pathlib import Path

import pytest

from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.run import evaluate_layer
from models.make_synthetic_gemma_scope import make


@pytest.mark.parametrize("rank", [2, 7])
def test_the_promised_l0_and_fvu_are_measured(toy_cache: Path, toy_transcoder: Path, tmp_path: Path, rank: int) -> None:
    truth = make(toy_cache, tmp_path / "scope", l0=rank)
    evaluate_layer(
        cache=toy_cache,
        transcoder=toy_transcoder,
        out=tmp_path / "report",
        settings=EvaluateSettings(bootstrap=10),
        device="cpu",
        gemma_scope=str(tmp_path / "scope"),
        progress=Silent(),
    )
    theirs = json.loads((tmp_path / "report" / "google_metrics.json").read_text())
    assert theirs["l0"] == truth.l0 == rank
    assert theirs["fvu"] == pytest.approx(truth.fvu, abs=1e-5)
    assert 0.05 < truth.fvu < 1
