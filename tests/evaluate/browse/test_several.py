"""Rows of dictionaries of several layers have the numbers of their reports, layer by layer."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from common import disk
from evaluate.browse.page import write_page
from evaluate.browse.runs import runs_below
from evaluate.browse.serve import Shelf

REPORT = "toy/layers03-04/report/clt/metrics.json"
SPLICED = {"per_prefix": [{"delta": 0.5, "kl": 0.4, "top1": 0.3}, {"delta": 0.2, "kl": 0.1, "top1": 0.6}]}


def found(runs: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(run["name"], run["kind"]): run for run in runs_below(runs)["dictionaries"]}


@pytest.fixture
def copy(several: Path, tmp_path: Path) -> Path:
    shutil.copytree(several, tmp_path / "runs")
    return tmp_path / "runs"


def test_a_cross_layer_transcoder_has_its_report_and_its_pages(several: Path) -> None:
    run = found(several)["clt", "cross-layer"]
    fields = json.loads((several / REPORT).read_text())["dictionaries"]["clt"]
    assert (run["id"], run["layers"], run["state"], run["window"]) == ("toy/3-4/clt", [3, 4], "evaluated", 1)
    assert (run["dict_size"], run["top_k"], run["tokens"], run["steps"]) == (32, 4, 512, 9)
    assert run["fvu"] == fields["fvu_per_prefix"]
    by_layer = fields["l0_per_layer_and_prefix"]
    assert run["l0"] == pytest.approx([(by_layer[0][index] + by_layer[1][index]) / 2 for index in range(2)])
    assert run["dead"] == pytest.approx([sum(fields["dead_per_layer"]) / 2])
    assert run["delta"] is None
    for number, own in enumerate(run["per_layer"]):
        assert own["fvu"] == fields["fvu_per_layer_and_prefix"][number]
        assert own["crossing"] == fields["crossing_per_layer"][number]
        assert own["features"] == f"toy/layer0{3 + number}/features/clt/index.html"
    assert run["features"] == "toy/layers03-04/features/clt/index.html"
    assert REPORT in run["report"]
    assert "clt" in run["summary"]


def test_a_set_that_was_measured_beside_it_is_a_row_of_its_own(several: Path) -> None:
    runs = found(several)
    run = runs["main", "set"]
    fields = json.loads((several / REPORT).read_text())["dictionaries"]["main"]
    assert (run["id"], run["layers"], run["state"]) == ("toy/3-4/main", [3, 4], "evaluated")
    assert (run["dict_size"], run["prefixes"], run["tokens"]) == (64, [8, 24, 64], 12345)
    assert run["fvu"] == fields["fvu_per_prefix"]
    assert [own["features"] for own in run["per_layer"]] == [None, None]
    assert runs["main", "transcoder"]["layers"] == [4], "its layers are listed by themselves too"


def test_the_models_loss_is_that_of_the_report_on_all_layers_at_once(copy: Path) -> None:
    layers = [{"layer": layer, "prefixes": [8, 24]} for layer in (3, 4)]
    document = {"evaluated_at": "2026", "layers": layers, "language_model": SPLICED}
    for name in ("main", "alone", "main.2026-11-27T10-00-00"):
        disk.write_file(copy / "toy" / "together" / name / "metrics.json", json.dumps(document).encode())
    for layer, fvu in ((3, [0.5, 0.3]), (4, [0.3, 0.1])):
        folder = copy / "toy" / f"layer0{layer}"
        shutil.copytree(folder / "transcoder" / "main", folder / "transcoder" / "alone")
        report = {"prefixes": [8, 24], "fvu_per_prefix": fvu, "l0_per_prefix": [2.0, 4.0]}
        report |= {"dead_fraction_per_prefix": [0.0, 0.25 * (layer - 3)]}
        disk.write_file(folder / "report" / "alone" / "metrics.json", json.dumps(report).encode())
    runs = found(copy)
    assert (runs["main", "set"]["delta"], runs["main", "set"]["kl"]) == ([0.5, 0.2], [0.4, 0.1])
    alone = runs["alone", "set"]
    assert (alone["top1"], alone["measured"], alone["prefixes"]) == ([0.3, 0.6], "layers", [8, 24])
    assert alone["fvu"] == pytest.approx([0.4, 0.2])
    assert (alone["l0"], alone["dead"]) == ([2.0, 4.0], [0.125])
    assert alone["per_layer"][1]["fvu"] == [0.3, 0.1]
    assert len([run for run in runs_below(copy)["dictionaries"] if len(run["layers"]) > 1]) == 3


def test_runs_in_training_and_without_a_report_have_rows(copy: Path) -> None:
    joint = copy / "toy" / "layers03-04"
    shutil.rmtree(joint / "report")
    disk.write_file(joint / "transcoder" / "new" / "metrics.jsonl", b'{"step": 3, "loss": 0.5, "l0": 4.0}\n')
    runs = found(copy)
    assert (runs["new", "cross-layer"]["state"], runs["new", "cross-layer"]["steps"]) == ("in training", 3)
    assert (runs["clt", "cross-layer"]["state"], runs["clt", "cross-layer"]["fvu"]) == ("trained", None)
    assert len(runs["clt", "cross-layer"]["per_layer"]) == 2
    assert ("main", "set") not in runs


@pytest.mark.parametrize("text", ["{", '{"dictionaries": {"clt": {"window": 1}}, "layers": [3, 4]}', '{"layers": 3}'])
def test_a_damaged_report_is_a_problem_of_its_row_only(copy: Path, text: str) -> None:
    (copy / REPORT).write_text(text)
    disk.write_file(copy / "toy" / "together" / "odd" / "metrics.json", b'{"layers": 3}')
    runs = found(copy)
    assert "metrics.json" in runs["clt", "cross-layer"].get("problem", "") or text == '{"layers": 3}'
    assert runs["clt", "cross-layer"]["per_layer"][0]["features"]
    assert "problem" not in runs["main", "transcoder"]


def test_the_pages_of_its_layers_are_served(several: Path) -> None:
    shelf = Shelf(several)
    for path in (
        "layer03/features/clt/index.html",
        "layer04/features/clt/index.html",
        "layers03-04/report/clt/summary.txt",
    ):
        assert shelf.file(f"/toy/{path}") == several / "toy" / path
    assert shelf.file("/toy/layers03-04/transcoder/clt/transcoder.safetensors") is None


@pytest.mark.browser
def test_the_page_has_their_rows_and_a_line_a_layer(copy: Path, browser: WebDriver) -> None:
    metrics = json.loads((copy / REPORT).read_text())
    metrics["dictionaries"]["clt"] |= {"language_model": SPLICED, "absorption_per_prefix": [0.125, 0.5]}
    (copy / REPORT).write_text(json.dumps(metrics))
    browser.get("about:blank")
    browser.get(write_page(copy).as_uri() + "#toy%2F3-4%2Fclt")
    WebDriverWait(browser, 20).until(lambda _: browser.find_elements(By.CSS_SELECTOR, ".details h2"))
    rows = {
        row.get_attribute("data-run"): row.text for row in browser.find_elements(By.CSS_SELECTOR, ".table tbody tr")
    }
    assert list(rows) == ["toy/3-4/clt", "toy/3-4/main", "toy/3/main", "toy/4/main"]
    assert "3, 4 clt cross-layer evaluated 32 4" in rows["toy/3-4/clt"]
    assert " 0.5 0.2 " in rows["toy/3-4/clt"], "absorption, and what the model loses"
    assert "per-layer set" in rows["toy/3-4/main"]
    tables = browser.find_elements(By.CSS_SELECTOR, ".details table")
    assert tables[0].find_element(By.TAG_NAME, "thead").text.split() == [
        "prefix",
        "FVU",
        "L0",
        "Δ",
        "loss",
        "KL",
        "top-1",
    ]
    assert [row.text.split()[:2] for row in tables[1].find_elements(By.CSS_SELECTOR, "tbody tr")] == [
        ["layer", "3"],
        ["layer", "4"],
    ]
    assert [link.get_attribute("href") for link in tables[1].find_elements(By.TAG_NAME, "a")] == [
        (copy / "toy" / f"layer0{layer}" / "features" / "clt" / "index.html").as_uri() for layer in (3, 4)
    ]
    assert "of the decoder crosses layers" in browser.find_element(By.CSS_SELECTOR, ".details .note").text
    assert not browser.get_log("browser")
