"""Several layers measured together: one table of a set, and what is refused before any row is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import MismatchError, UsageError
from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.joint.run import Candidate, evaluate_layers
from transcoder.formats.native import load_transcoder, read_config, save_transcoder


def run(caches: dict[int, Path], candidate: Candidate, out: Path) -> dict[str, Any]:
    return evaluate_layers(
        caches=caches,
        candidates=[candidate],
        out=out,
        settings=EvaluateSettings(bootstrap=0),
        device="cpu",
        lm=None,
        progress=Silent(),
    )


def test_a_set_has_the_fvu_of_its_transcoders(
    toy_cache: Path, toy_transcoder: Path, toy_metrics: dict[str, Any], tmp_path: Path
) -> None:
    """Twice the same layer: the mean over layers is that of one."""
    candidate = Candidate("main", tmp_path / "joint", {3: toy_transcoder, 4: toy_transcoder})
    metrics = run({4: toy_cache, 3: toy_cache}, candidate, tmp_path / "out")
    assert metrics["layers"] == [3, 4]
    found = metrics["dictionaries"]["main"]
    assert found["fvu_per_prefix"] == pytest.approx(toy_metrics["fvu_per_prefix"], rel=1e-5)
    assert found["tokens_used"] == toy_metrics["tokens_used"]
    assert found["language_model"] is None
    assert found["weights"] == dict.fromkeys(("3", "4"), read_config(toy_transcoder)["weights"])
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert "measure with --lm" in (tmp_path / "out" / "summary.txt").read_text()


def test_dictionaries_and_caches_that_do_not_match_are_refused(
    toy_cache: Path, write_toy_cache: Callable[..., Path], toy_transcoder: Path, tmp_path: Path
) -> None:
    missing = Candidate("main", tmp_path / "joint", {3: toy_transcoder, 4: tmp_path / "nothing"})
    with pytest.raises(UsageError, match="none of layer 4"):
        run({3: toy_cache, 4: toy_cache}, missing, tmp_path / "out")
    save_transcoder(load_transcoder(toy_transcoder), tmp_path / "other", config={"cache_fingerprint": "0" * 32})
    foreign = Candidate("main", tmp_path / "joint", {3: toy_transcoder, 4: tmp_path / "other"})
    with pytest.raises(MismatchError, match="trained on the cache 000"):
        run({3: toy_cache, 4: toy_cache}, foreign, tmp_path / "out")
    shorter = write_toy_cache(tmp_path / "shorter", held_out_rows=160)
    both = Candidate("main", tmp_path / "joint", {3: toy_transcoder, 4: toy_transcoder})
    with pytest.raises(MismatchError):
        run({3: toy_cache, 4: shorter}, both, tmp_path / "out")
    assert not (tmp_path / "out").exists()
