"""The script for trying the comparison: an evaluation finds the L0 and FVU that it states."""

import json
from pathlib import Path

import pytest

from models.make_synthetic_gemma_scope import make
from tests.helpers.evaluation import evaluate


@pytest.mark.parametrize("rank", [2, 7])
def test_the_stated_l0_and_fvu_are_measured(toy_cache: Path, toy_transcoder: Path, tmp_path: Path, rank: int) -> None:
    truth = make(toy_cache, tmp_path / "scope", l0=rank)
    evaluate(toy_cache, toy_transcoder, tmp_path / "report", bootstrap=10, gemma_scope=str(tmp_path / "scope"))
    google = json.loads((tmp_path / "report" / "google_metrics.json").read_text())
    assert google["l0"] == truth.l0 == rank
    assert google["fvu"] == pytest.approx(truth.fvu, abs=1e-5)
    assert 0.05 < truth.fvu < 1
