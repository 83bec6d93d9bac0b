"""A comparison on a real cache, against a file in Google's format whose L0 and FVU are known in closed form."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from common.errors import MismatchError
from evaluate.compare import difference, verdicts
from evaluate.report.table_of_runs import table_of_runs
from tests.helpers.caches import write_cache as write_rows
from tests.helpers.evaluation import evaluate
from transcoder.formats.native import save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

WIDTH, THRESHOLD, MISSING, NOISE, ROWS = 32, 1.2, 8, 0.3, 8_000
TAIL = 0.5 * math.erfc(THRESHOLD / math.sqrt(2))
DENSITY = math.exp(-(THRESHOLD**2) / 2) / math.sqrt(2 * math.pi)
VARIANCE = THRESHOLD * DENSITY + TAIL - DENSITY**2
KEPT = WIDTH - MISSING
TRUE_L0 = KEPT * TAIL
TRUE_FVU = (MISSING * VARIANCE + WIDTH * NOISE**2) / (WIDTH * VARIANCE + WIDTH * NOISE**2)


def orthonormal(seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed))).Q


ENCODER, DECODER = orthonormal(0), orthonormal(1)
GAIN, BIAS = 1.5 + torch.rand(WIDTH, generator=torch.Generator().manual_seed(2)), torch.linspace(-1, 1, WIDTH)


def rows(count: int, *, seed: int) -> dict[str, Any]:
    """x ~ N(0, 1) seen by the MLP as x * gain + bias; y = 0.7 + the true features above their thresholds + noise."""
    generator = torch.Generator().manual_seed(seed)
    normalised = torch.randn(count, WIDTH, generator=generator)
    pre = normalised @ ENCODER
    noise = NOISE * torch.randn(count, WIDTH, generator=generator)
    return {
        "source": normalised * GAIN + BIAS,
        "target": 0.7 + (pre * (pre > THRESHOLD)) @ DECODER + noise,
        "tokens": np.ones(count, np.int32),
        "document": np.arange(count, dtype=np.int64) // 50,
        "position": np.arange(count, dtype=np.int32) % 50,
    }


def write_cache(path: Path, *, gain: torch.Tensor = GAIN, bias: torch.Tensor = BIAS, **identity: Any) -> Path:
    known = {"model": "toy", "layer": 8, "source_site": "mlp_in", "target_site": "mlp_out", "context": 50}
    return write_rows(
        path,
        rows(2000, seed=3),
        rows(ROWS, seed=4),
        identity=known | identity,
        arrays={"gain": gain.numpy(), "bias": bias.numpy()},
        dtype="float32",
        chunk_rows=500,
        shard_rows=2000,
        segment_rows=4000,
    )


def write_google(root: Path, *, l0: int = round(TRUE_L0)) -> Path:
    path = root / "layer_8" / "width_16k" / f"average_l0_{l0}" / "params.npz"
    path.parent.mkdir(parents=True)
    # The file lacks the last true features; its bias has their mean.
    arrays = {
        "W_enc": ENCODER[:, :KEPT],
        "b_enc": torch.zeros(KEPT),
        "threshold": torch.full((KEPT,), THRESHOLD),
        "W_dec": DECODER[:KEPT],
        "b_dec": 0.7 + DENSITY * DECODER[KEPT:].sum(0),
    }
    np.savez(path, **{name: array.numpy() for name, array in arrays.items()})
    return root


def write_transcoder(folder: Path, *, top_k: int = 6) -> Path:
    """Ours: the true dictionary, its features in order, under top-k; it reads what the MLP reads."""
    encoder = ENCODER / GAIN[:, None]
    arrays = (encoder.T.contiguous(), -(BIAS @ encoder), DECODER, torch.full((WIDTH,), 0.7))
    transcoder = Transcoder(*arrays, rule=TopK(top_k), prefixes=(8, 16, WIDTH))
    save_transcoder(transcoder, folder, config={"tokens_trained": 5000})
    return folder


run = partial(evaluate, bootstrap=50, batch_rows=1000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("compare")
    write_cache(root / "cache")
    write_google(root / "google")
    write_transcoder(root / "main")
    run(root / "cache", root / "main", root / "report", gemma_scope=str(root / "google"))
    return root


@pytest.fixture(scope="module")
def comparison(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report" / "comparison.json").read_text())


def test_googles_l0_and_fvu_are_those_of_the_closed_form(folder: Path, comparison: dict[str, Any]) -> None:
    reference = json.loads((folder / "report" / "google_metrics.json").read_text())
    assert reference["fvu"] == pytest.approx(TRUE_FVU, rel=0.02)
    assert reference["l0"] == pytest.approx(TRUE_L0, rel=0.02)
    assert reference["dead_fraction"] == 0
    assert reference["redundancy"]["twin_share"] == 0
    assert "of the 3 that its folder names" in comparison["theirs"]["convention"]
    assert comparison["tokens_trained"] == {"ours": 5000, "theirs": None}


def test_every_prefix_of_ours_is_beside_the_reference(folder: Path, comparison: dict[str, Any]) -> None:
    ours = json.loads((folder / "report" / "ours_metrics.json").read_text())
    entries = comparison["ours"]["per_prefix"]
    assert [entry["prefix"] for entry in entries] == [8, 16, WIDTH]
    assert [entry["fvu"] for entry in entries] == ours["fvu_per_prefix"]
    for entry in entries:
        for name in ("fvu", "cosine", "l0"):
            gap = entry["difference"][name]
            assert gap["value"] == pytest.approx(entry[name] - comparison["theirs"][name], abs=1e-9)
            assert gap["interval"][0] <= gap["value"] <= gap["interval"][1]


def test_ours_is_measured_again_at_the_l0_of_the_reference(comparison: dict[str, Any]) -> None:
    matched = comparison["ours_at_their_l0"]
    assert matched["top_k"] == round(comparison["theirs"]["l0"])
    assert matched["per_prefix"][-1]["l0"] == pytest.approx(matched["top_k"], abs=0.01)


def test_the_report_has_table_and_plot_and_a_reason_for_what_is_missing(
    folder: Path, comparison: dict[str, Any]
) -> None:
    files = {path.name for path in (folder / "report").iterdir()}
    assert {"fvu_against_l0.png", "fvu_against_l0.svg", "metrics.json", "summary.txt"} <= files
    text = (folder / "report" / "summary.txt").read_text()
    assert "Ours minus theirs" in text
    assert "at k = 3" in text
    assert "N/A" not in text
    assert "absorption_first_letter: there is no probe cache" in text
    missing = {"ours: absorption_first_letter", "theirs: absorption_first_letter", "theirs: tokens_trained"}
    assert set(comparison["not_compared"]) == missing


def test_the_gained_input_is_refused_before_anything_is_measured(tmp_path: Path, folder: Path) -> None:
    """A cache whose gain is not what it says feeds the dictionary the gained input."""
    wrong = write_cache(tmp_path / "cache", gain=torch.ones(WIDTH), bias=torch.zeros(WIDTH))
    request = {"gemma_scope": str(folder / "google")}
    with pytest.raises(MismatchError, match="does not get the input") as refused:
        run(wrong, folder / "main", tmp_path / "report", **request)
    assert refused.value.where.endswith("params.npz")
    assert not (tmp_path / "report").exists()


def test_a_run_against_itself_differs_in_nothing(tmp_path: Path, folder: Path) -> None:
    run(folder / "cache", folder / "main", tmp_path / "report", against=folder / "main")
    document = json.loads((tmp_path / "report" / "comparison.json").read_text())
    row = document["ours"]["per_prefix"][-1]
    assert {"fvu", "cosine", "l0", "fvu_whitened", "fvu_median_token"} < row["difference"].keys()
    assert all(gap == {"value": 0.0, "interval": [0.0, 0.0]} for gap in row["difference"].values())
    assert set(row["better"].values()) == {None}
    assert not row["disagree"]
    assert "already" in document["ours_at_their_l0"]["reason"]
    assert "one of our own runs" in document["theirs"]["convention"]
    assert (tmp_path / "report" / "other_metrics.json").is_file()


def test_two_runs_on_other_sites_compare_as_they_were_trained(tmp_path: Path, folder: Path) -> None:
    cache = write_cache(tmp_path / "cache", source_site="resid_mid", target_site="resid_post")
    run(cache, folder / "main", tmp_path / "report", against=folder / "main", force=True)
    document = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert document["ours"]["per_prefix"][-1]["difference"]["fvu"]["value"] == 0


def test_a_cache_of_normalised_rows_needs_no_folding(tmp_path: Path, folder: Path) -> None:
    plain = {"gain": torch.ones(WIDTH), "bias": torch.zeros(WIDTH)}
    cache = write_cache(tmp_path / "cache", **plain, source_site="ln2_normalized")
    with pytest.raises(MismatchError, match="does not get the input"):
        run(cache, folder / "main", tmp_path / "report", gemma_scope=str(folder / "google"))


def test_an_l0_as_stated_does_not_hide_that_nothing_is_explained(tmp_path: Path, folder: Path) -> None:
    """The right number of features fires on rows of another model, too."""
    path = write_google(tmp_path / "google") / f"layer_8/width_16k/average_l0_{round(TRUE_L0)}/params.npz"
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"W_dec": -arrays["W_dec"]})
    metrics = run(folder / "cache", folder / "main", tmp_path / "report", gemma_scope=str(path))
    assert "may be of another model or layer" in metrics["comparison"]["theirs"]["convention"]


def test_the_table_over_layers_has_both(tmp_path: Path, folder: Path) -> None:
    metrics = run(folder / "cache", folder / "main", tmp_path / "report", gemma_scope=str(folder / "google"))
    lines = table_of_runs({8: metrics}).splitlines()
    reference = metrics["comparison"]["theirs"]
    assert lines[-1].split()[:3] == ["8", "theirs", f"{reference['fvu']:.4f}"]
    assert lines[-1].endswith("gemma-scope, 24 features")


def test_paired_intervals_are_narrower_than_unpaired() -> None:
    generator = np.random.default_rng(0)
    shared, own = generator.normal(size=401), 0.01 * generator.normal(size=401)
    gap = difference(1 + shared + own, shared)
    assert gap["interval"][1] - gap["interval"][0] < 0.06
    assert difference(shared[:1], shared[:1])["interval"] is None


def test_forms_that_name_different_winners_disagree() -> None:
    lower, higher = {"value": -0.1, "interval": [-0.2, -0.1]}, {"value": 0.1, "interval": [0.1, 0.2]}
    unclear = {"value": 0.1, "interval": [-0.1, 0.2]}
    agreed = verdicts({"fvu": lower, "fvu_whitened": unclear, "cosine": higher})
    assert agreed == {"better": {"fvu": "ours", "fvu_whitened": None}, "disagree": False}
    assert verdicts({"fvu": lower, "delta_cross_entropy": higher})["disagree"]
    assert verdicts({"fvu": {"value": 0.1, "interval": None}})["better"] == {"fvu": None}
