"""An evaluation of a real cache: the numbers, the files, and what must not happen."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.reader import CacheReader
from common.errors import MismatchError, UsageError
from tests.helpers.evaluation import evaluate as evaluate_toy
from transcoder.formats.native import load_transcoder, save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

evaluate = partial(evaluate_toy, bootstrap=50, dead_mean_firings=5.0)


DEVICES = ["cpu", *[pytest.param("cuda", marks=pytest.mark.gpu)] * torch.cuda.is_available()]


def test_every_number_is_that_of_a_dense_replay(
    toy_metrics: dict[str, Any], toy_cache: Path, toy_transcoder: Path
) -> None:
    reader, trained = CacheReader.open(toy_cache), load_transcoder(toy_transcoder)
    rows = reader.split("held_out").rows(slice(None))
    kept = torch.from_numpy(rows.tokens != 0)
    x, y = rows.source[kept].double(), rows.target[kept].double()
    pre = x @ trained.W_enc.double().T + trained.b_enc.double()
    code = pre.relu() * torch.zeros_like(pre).scatter_(1, pre.topk(trained.top_k).indices, 1.0)
    total = ((y - y.mean(0)) ** 2).sum()
    for index, prefix in enumerate(trained.prefixes):
        predicted = code[:, :prefix] @ trained.W_dec[:prefix].double() + trained.b_dec.double()
        assert toy_metrics["fvu_per_prefix"][index] == pytest.approx(
            float(((y - predicted) ** 2).sum() / total), rel=1e-5
        )
        assert toy_metrics["l0_per_prefix"][index] == pytest.approx(
            float((code[:, :prefix] > 0).double().sum(1).mean())
        )
        cosine = torch.cosine_similarity(predicted, y, dim=1).mean()
        assert toy_metrics["cosine_per_prefix"][index] == pytest.approx(float(cosine), rel=1e-5)
    assert toy_metrics["dead_fraction"] == float((code.sum(0) == 0).double().mean())
    assert (toy_metrics["tokens_used"], toy_metrics["tokens_masked"]) == (1500, 100)


@pytest.mark.parametrize("device", DEVICES)
def test_neither_device_nor_batch_moves_the_numbers(
    toy_metrics: dict[str, Any], toy_cache: Path, toy_transcoder: Path, tmp_path: Path, device: str
) -> None:
    found = evaluate(toy_cache, toy_transcoder, tmp_path / "again", device=device, batch_rows=96)
    for name in ("fvu_per_prefix", "cosine_per_prefix"):
        assert found[name] == pytest.approx(toy_metrics[name], rel=1e-7), name
    assert found["l0_per_prefix"] == toy_metrics["l0_per_prefix"]


def test_the_top_level_names_are_there(toy_metrics: dict[str, Any]) -> None:
    names = "fvu fvu_per_prefix fvu_min fvu_max fvu_mean cosine l0 l0_per_prefix dead_fraction redundancy"
    names += " absorption_first_letter baselines tokens_used tokens_masked version evaluated_at"
    assert set(names.split()) <= set(toy_metrics)
    assert toy_metrics["fvu"] == toy_metrics["fvu_per_prefix"][-1]
    low, high = toy_metrics["fvu_interval_per_prefix"][-1]
    assert low < toy_metrics["fvu"] < high
    assert toy_metrics["absorption_first_letter"]["score"] is None
    assert "probe" in toy_metrics["absorption_first_letter"]["reason"]


def test_the_transcoder_is_between_the_baselines(toy_metrics: dict[str, Any]) -> None:
    assert toy_metrics["baselines"]["bf16_floor"] < toy_metrics["fvu"] < toy_metrics["baselines"]["affine"] < 1
    assert toy_metrics["baselines"]["bias_only"] >= 1


def test_the_report_has_every_file(toy_report: Path) -> None:
    names = {path.name for path in toy_report.iterdir()}
    plots = {f"{stem}.{kind}" for stem in ("fvu_by_prefix", "density", "l0") for kind in ("png", "svg")}
    assert names == plots | {"checksums.json", "metrics.json", "summary.txt", "samples.json", "samples.txt"}
    assert (toy_report / "density.png").read_bytes().startswith(b"\x89PNG")
    assert "best affine map" in (toy_report / "summary.txt").read_text()


def test_the_samples_show_the_strongest_token(toy_report: Path) -> None:
    features = json.loads((toy_report / "samples.json").read_text())["features"]
    assert features
    for feature in features:
        strongest = [context["activations"][context["at"]] for context in feature["contexts"]]
        assert strongest == sorted(strongest, reverse=True)
        assert len({context["document"] for context in feature["contexts"]}) == len(strongest)
        assert all(context["activations"][context["at"]] > 0 for context in feature["contexts"])
    assert "⟦" in (toy_report / "samples.txt").read_text()


@pytest.mark.parametrize("batch_rows", [33, 5000])
def test_the_batch_size_changes_nothing(
    toy_metrics: dict[str, Any], toy_cache: Path, toy_transcoder: Path, tmp_path: Path, batch_rows: int
) -> None:
    metrics = evaluate(toy_cache, toy_transcoder, tmp_path / "main", batch_rows=batch_rows)
    np.testing.assert_allclose(metrics["fvu_per_prefix"], toy_metrics["fvu_per_prefix"], rtol=1e-6)
    assert metrics["sparsity"] == toy_metrics["sparsity"]
    assert metrics["baselines"]["affine"] == pytest.approx(toy_metrics["baselines"]["affine"], rel=1e-5)


def test_an_earlier_evaluation_is_moved_to_its_date(toy_cache: Path, toy_transcoder: Path, tmp_path: Path) -> None:
    first = evaluate(toy_cache, toy_transcoder, tmp_path / "main")
    evaluate(toy_cache, toy_transcoder, tmp_path / "main")
    kept = [path for path in tmp_path.iterdir() if path.name.startswith("main.")]
    assert len(kept) == 1
    assert json.loads((kept[0] / "metrics.json").read_text()) == first


def test_another_width_is_a_mismatch(toy_cache: Path, tmp_path: Path) -> None:
    wide = Transcoder(**random_arrays(7, 10, dict_size=8), rule=TopK(2))
    save_transcoder(wide, tmp_path / "other", config={})
    with pytest.raises(MismatchError, match="7 dimensions"):
        evaluate(toy_cache, tmp_path / "other", tmp_path / "main")
    assert not (tmp_path / "main").exists()


def test_a_missing_transcoder_is_a_usage_error(toy_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no trained transcoder"):
        evaluate(toy_cache, tmp_path / "nothing", tmp_path / "main")


def test_a_transcoder_of_another_cache_is_a_mismatch(toy_cache: Path, toy_transcoder: Path, tmp_path: Path) -> None:
    save_transcoder(load_transcoder(toy_transcoder), tmp_path / "other", config={"cache_fingerprint": "0" * 32})
    with pytest.raises(MismatchError, match="trained on the cache 000"):
        evaluate(toy_cache, tmp_path / "other", tmp_path / "main")


def test_rows_of_special_tokens_change_nothing(
    toy_metrics: dict[str, Any], toy_cache_without_special_rows: Path, toy_transcoder: Path, tmp_path: Path
) -> None:
    metrics = evaluate(toy_cache_without_special_rows, toy_transcoder, tmp_path / "main")
    assert (metrics["tokens_used"], metrics["tokens_masked"]) == (1500, 0)
    np.testing.assert_allclose(metrics["fvu_per_prefix"], toy_metrics["fvu_per_prefix"], rtol=1e-6)
    assert metrics["sparsity"] == toy_metrics["sparsity"]
    assert metrics["baselines"]["affine"] == pytest.approx(toy_metrics["baselines"]["affine"], rel=1e-9)


def test_a_missing_device_is_named(toy_cache: Path, toy_transcoder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cuda:99"):
        evaluate(toy_cache, toy_transcoder, tmp_path / "out", device="cuda:99")


def test_no_training_row_is_read(
    toy_metrics: dict[str, Any], write_toy_cache: Any, toy_transcoder: Path, tmp_path: Path
) -> None:
    cache = write_toy_cache(tmp_path / "cache")
    shards = [path for path in cache.glob("rows.zarr/train/*/c.*") if path.parent.name != "statistics"]
    assert shards
    for shard in shards:
        shard.write_bytes(b"\xff" * shard.stat().st_size)
    metrics = evaluate(cache, toy_transcoder, tmp_path / "main")
    assert metrics["fvu_per_prefix"] == toy_metrics["fvu_per_prefix"]
