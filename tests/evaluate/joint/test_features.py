"""Evidence of a cross-layer transcoder against its definitions, its pages in a browser, the commands that read it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

import nestcoder
from cache.open import open_cache
from common.errors import UsageError
from evaluate.features.evidence import Evidence, read_evidence
from evaluate.features.text.page import feature_page
from nestcoder.cli import command_line

MODEL = Path(__file__).parents[3] / "models" / "gpt2-stdlib"
LAYERS = [3, 5, 6]
SMALL = (
    "harvest.train_tokens=1200", "harvest.held_out_tokens=400", "harvest.context=64", "cache.held_out_fraction=0.3",
    "train.kind=cross-layer", "train.window=1", "train.steps=8", "train.warmup_steps=2", "train.batch_rows=64",
    "train.skip=true", "train.held_out_rows=128", "train.prefixes=[16, 64]", "train.top_k=4", "features.block_rows=128",
    "log.activation_samples.every=4", "log.activation_samples.threshold=0",
    "features.context_tokens=6",
)  # fmt: skip


def settings_of(runs: Path, *more: str) -> nestcoder.PipelineSettings:
    return nestcoder.load_settings(overrides=[*SMALL, f"model={MODEL}", f"runs={runs}", *more])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint") / "runs"
    settings = settings_of(folder)
    nestcoder.run_harvest(settings, LAYERS, device="cpu")
    nestcoder.run_train(settings, LAYERS, name="clt", device="cpu")
    nestcoder.run_features(settings, LAYERS, name="clt", device="cpu", lm=True)
    return folder


def evidence_of(runs: Path, layer: int) -> Evidence:
    return read_evidence(runs / "gpt2-stdlib" / f"layer0{layer}" / "features" / "clt")


@pytest.mark.parametrize("layer", LAYERS)
def test_losses_are_those_of_the_definition(runs: Path, layer: int) -> None:
    """Over all layers that are written to, with what the other layers' features write there."""
    evidence = evidence_of(runs, layer)
    dictionary = nestcoder.load_cross_layer(runs / "gpt2-stdlib" / "layers03_05_06" / "transcoder" / "clt")
    number = LAYERS.index(layer)
    into = list(dictionary.reach.written(number))
    scales = torch.tensor(dictionary.config["target_scales"]).double()
    splits = [
        open_cache(runs / "gpt2-stdlib" / f"layer0{member}" / "cache").split("held_out").rows(slice(None))
        for member in LAYERS
    ]
    ordinary = torch.from_numpy(splits[0].tokens != 0)
    sources = [split.source[ordinary].float() for split in splits]
    reconstructed = dictionary.reconstructions(sources).double()
    targets = torch.stack([split.target[ordinary].double() for split in splits])
    total = sum(((targets[t] - targets[t].mean(0)) * scales[t]).square().sum() for t in into)
    for index in range(2):
        errors = sum(((targets[t] - reconstructed[t, :, index]) * scales[t]).square().sum() for t in into)
        assert evidence.head["fvu_per_prefix"][index] == pytest.approx(float(errors / total), rel=1e-4)
    activations = dictionary.piece(number).encode(sources[number]).double()
    assert np.array_equal(evidence.arrays["firings"], (activations > 0).sum(dim=0).numpy())
    blocks = dictionary.piece(number).W_dec.double().unflatten(1, (-1, 96))
    for feature in np.argsort(-evidence.arrays["firings"])[:5].tolist():
        grown = 0.0
        for index, t in enumerate(into):
            error = (targets[t] - reconstructed[t, :, -1]) * scales[t]
            without = error + activations[:, feature, None] * blocks[feature, index] * scales[t]
            grown += float(without.square().sum() - error.square().sum())
        assert evidence.arrays["fvu_lost"][feature] == pytest.approx(grown / float(total), rel=1e-3, abs=1e-7)
        squares = [float((blocks[feature, index] * scales[t]).square().sum()) for index, t in enumerate(into)]
        shares = np.array(squares) / sum(squares)
        assert evidence.arrays["written_share"][feature] == pytest.approx(shares, rel=1e-4)
        page = feature_page(evidence, feature)
        assert [write["layer"] for write in page["writes"]] == [LAYERS[t] for t in into]
        assert page["logits"] is not None


@pytest.mark.browser
def test_the_index_links_to_pages_that_show_where_a_feature_writes(runs: Path, browser: WebDriver) -> None:
    index = runs / "gpt2-stdlib" / "layers03_05_06" / "features" / "clt" / "index.html"
    browser.get(index.as_uri())
    assert [link.text for link in browser.find_elements(By.CSS_SELECTOR, "td a")] == ["layer 3", "layer 5", "layer 6"]
    browser.find_element(By.LINK_TEXT, "layer 3").click()
    feature = int(np.argmax(evidence_of(runs, 3).arrays["firings"]))
    WebDriverWait(browser, 20).until(lambda _: browser.find_elements(By.CSS_SELECTOR, "#main h1, #main .none"))
    browser.get(f"{browser.current_url.partition('#')[0]}#/3/{feature}")
    WebDriverWait(browser, 20).until(lambda _: browser.find_elements(By.CSS_SELECTOR, ".writes tr"))
    assert [row.text.split()[:2] for row in browser.find_elements(By.CSS_SELECTOR, ".writes tr")] == [
        ["layer", "3"],
        ["layer", "5"],
    ]
    assert "these features read layer 3" in browser.find_element(By.CSS_SELECTOR, ".caution").text
    browser.find_element(By.LINK_TEXT, "All layers").click()
    WebDriverWait(browser, 20).until(lambda _: browser.find_elements(By.LINK_TEXT, "layer 6"))
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_the_commands_read_them(runs: Path, tmp_path: Path) -> None:
    given = ["--set", f"runs={runs}", "--set", f"model={MODEL}", "features"]
    feature = int(np.argmax(evidence_of(runs, 5).arrays["firings"]))
    for words in (
        ["show", f"5/{feature}", "--name", "clt"],
        ["compare", f"5/{feature}", f"6/{feature}", "--name", "clt"],
        ["similar", f"5/{feature}", "--name", "clt"],
        ["find", "e", "--name", "clt"],
    ):
        done = CliRunner().invoke(command_line, [*given, *words])
        assert done.exit_code == 0, done.output + repr(done.exception)
        if words[0] == "show":
            assert "writes to" in done.output
            assert "layer 6" in done.output
    layers = [word for layer in LAYERS for word in ("--layer", str(layer))]
    plan = CliRunner().invoke(command_line, ["--json", *given, *layers, "--name", "clt", "--dry-run"])
    assert plan.exit_code == 0, plan.output + repr(plan.exception)
    assert list(json.loads(plan.stdout)) == ["3", "5", "6"]


def test_how_features_formed_is_shown(runs: Path) -> None:
    """On the page, and with the text by the command; the last step's firings are those of the result."""
    evidence = evidence_of(runs, 5)
    feature = int(np.argmax(evidence.arrays["firings"]))
    assert [step["step"] for step in feature_page(evidence, feature)["formed"]] == [4, 8]
    assert np.array_equal(evidence.arrays["formed_firings"][:, -1], evidence.arrays["firings"])
    given = ["--json", "--set", f"runs={runs}", "--set", f"model={MODEL}", "features", "history", f"5/{feature}"]
    done = CliRunner().invoke(command_line, [*given, "--name", "clt"])
    assert done.exit_code == 0, done.output
    history = json.loads(done.stdout)
    assert [step["step"] for step in history] == [4, 8]
    assert history[-1]["firings"] == evidence.arrays["firings"][feature]
    assert history[-1]["samples"][0]["tokens"]
    run = next((runs / "gpt2-stdlib").glob("layers*/transcoder/clt"))
    (run / "activation_samples").rename(run / "elsewhere")
    done = CliRunner().invoke(command_line, [*given, "--name", "clt"])
    (run / "elsewhere").rename(run / "activation_samples")
    assert isinstance(done.exception, UsageError)
    assert str(done.exception.where) == str(run), "the refusal names the run that is there"
    twin = runs / "gpt2-stdlib" / "layers05_06" / "transcoder" / "clt" / "activation_samples" / "layer05"
    twin.mkdir(parents=True)
    done = CliRunner().invoke(command_line, [*given, "--name", "clt"])
    assert isinstance(done.exception, UsageError)
    assert "two cross-layer transcoders 'clt' read layer 5" in done.exception.what
    shutil.rmtree(twin.parents[3])


def test_pages_of_another_dictionary_of_the_same_name_are_kept(runs: Path) -> None:
    alone = [setting for setting in SMALL if not setting.startswith(("train.kind", "train.window"))]
    single = nestcoder.load_settings(overrides=[*alone, f"model={MODEL}", f"runs={runs}"])
    nestcoder.run_train(single, [5], name="both", device="cpu")
    nestcoder.run_train(settings_of(runs), LAYERS, name="both", device="cpu")
    with pytest.raises(UsageError, match="Layer 5 has a transcoder 'both' of its own"):
        nestcoder.run_features(settings_of(runs), LAYERS, name="both", device="cpu")
