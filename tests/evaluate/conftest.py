"""A small real cache of a known nonlinear map, and a transcoder for it."""

import json
import shutil
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from cache.config import CacheSettings
from cache.reader import CacheReader
from cache.writer import CacheWriter
from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.features.code import Code, CodeBlock, join
from evaluate.features.collect import block_starts, encode_part, evidence_of
from evaluate.features.config import FeatureSettings
from evaluate.features.contexts import Text
from evaluate.features.evidence import Evidence
from evaluate.features.firings import Firings, by_feature
from evaluate.held_out import open_held_out
from evaluate.metrics.inputs import MetricInputs
from tests.helpers.evaluation import evaluate
from train.arrays.parameters import Parameters, random_parameters
from transcoder.formats.native import load_transcoder, save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver

D_SOURCE, D_TARGET, DICT_SIZE = 12, 10, 64
SPECIAL = 0
BLOCK = 16_384
"""Rows drawn at a time."""
IDENTITY = {"model": "toy", "layer": 3, "source_site": "mlp_in", "target_site": "mlp_out", "context": 16}


def toy_weights(d_source: int = D_SOURCE, d_target: int = D_TARGET) -> Parameters:
    return random_parameters(d_source, d_target, dict_size=DICT_SIZE, seed=5)


def toy_rows(rows: int, *, seed: int, d_source: int, d_target: int) -> dict[str, np.ndarray | torch.Tensor]:
    """Contexts of 16 rows that begin with a special token, whose vectors are huge, as a model's are."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(rows, d_source, generator=generator)
    weights = toy_weights(d_source, d_target)
    code = (source @ weights.W_enc.T + weights.b_enc).relu()
    target = code @ weights.W_dec + 0.3 * torch.randn(rows, d_target, generator=generator) + 2
    position = np.arange(rows, dtype=np.int32) % 16
    special = torch.from_numpy(position == 0)
    source[special], target[special] = 300.0, -500.0
    tokens = torch.randint(1, 40, (rows,), generator=generator).numpy().astype(np.int32)
    tokens[position == 0] = SPECIAL
    document = np.arange(rows, dtype=np.int64) // 40 + 1000 * seed
    sides = {"source": source.bfloat16(), "target": target.bfloat16()}
    return sides | {"tokens": tokens, "document": document, "position": position}


def write_cache(
    path: Path,
    *,
    train_rows: int = 512,
    held_out_rows: int = 1600,
    special: bool = True,
    d_source: int = D_SOURCE,
    d_target: int = D_TARGET,
    arrays: dict[str, np.ndarray] | None = None,
) -> Path:
    """``special`` False leaves out the rows of special tokens, and changes nothing else."""
    widths = {"d_source": d_source, "d_target": d_target}
    train = shown(toy_rows(train_rows, seed=1, **widths), special=special)
    large = 16 if held_out_rows > BLOCK else 1
    settings = CacheSettings(chunk_rows=64 * large, shard_rows=256 * large, segment_rows=512 * large)
    norm = {"gain": np.linspace(0.5, 2, d_source, dtype=np.float32), "bias": np.full(d_source, 0.1, np.float32)}
    with CacheWriter(
        path,
        identity=IDENTITY,
        settings=settings,
        **widths,
        train_rows=len(train["tokens"]),
        held_out_rows=held_out_rows if special else held_out_rows - -(-held_out_rows // 16),
        special_ids=[SPECIAL],
        arrays=norm | (arrays or {}),
    ) as writer:
        writer.append(**train, held_out=False, cursor=0)
        for cursor, start in enumerate(range(0, max(1, held_out_rows), BLOCK), start=1):
            rows = toy_rows(min(BLOCK, held_out_rows - start), seed=cursor + 1, **widths)
            writer.append(**shown(rows, special=special), held_out=True, cursor=cursor)
        assert writer.complete
    return path


def shown(rows: dict[str, Any], *, special: bool) -> dict[str, Any]:
    return rows if special else {name: column[rows["tokens"] != SPECIAL] for name, column in rows.items()}


@pytest.fixture(scope="session")
def write_toy_cache() -> Callable[..., Path]:
    return write_cache


@pytest.fixture(scope="session")
def toy_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("toy") / "cache")


@pytest.fixture(scope="session")
def toy_cache_without_special_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("toy") / "cache", special=False)


@pytest.fixture(scope="session")
def toy_transcoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "transcoder"
    weights = toy_weights()
    weights.b_dec.fill_(2.0)
    transcoder = Transcoder(**weights.tensors(), rule=TopK(20), prefixes=(8, 24, DICT_SIZE))
    save_transcoder(transcoder, folder, config={"tokens_trained": 12345})
    return folder


@pytest.fixture(scope="session")
def toy_report(toy_cache: Path, toy_transcoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that an evaluation of the toy leaves."""
    out = tmp_path_factory.mktemp("toy") / "report"
    evaluate(toy_cache, toy_transcoder, out, bootstrap=50, dead_mean_firings=5.0)
    return out


@pytest.fixture
def toy_metrics(toy_report: Path) -> dict[str, Any]:
    """Its metrics.json, read again for every test, which may change it."""
    return json.loads((toy_report / "metrics.json").read_text())


@pytest.fixture
def toy_inputs(toy_cache: Path, toy_transcoder: Path) -> MetricInputs:
    """What every metric of the toy is made with; no bootstrap, no probe, no language model."""
    reader = CacheReader.open(toy_cache)
    return MetricInputs(
        dictionary=load_transcoder(toy_transcoder),
        held_out=open_held_out(reader),
        reader=reader,
        settings=EvaluateSettings(bootstrap=0),
        device="cpu",
        absorption=lambda _: {"score": None, "reason": "not asked for"},
    )


@dataclass
class Toy:
    """Feature evidence of the toy cache; its ``dense`` code, where special rows are zero; the ``kept`` other rows."""

    reader: CacheReader
    trained: Transcoder
    settings: FeatureSettings
    blocks: list[CodeBlock]
    evidence: Evidence
    dense: np.ndarray
    kept: np.ndarray
    source: torch.Tensor
    target: torch.Tensor

    @property
    def code(self) -> Code:
        return join(self.blocks)

    @property
    def firings(self) -> Firings:
        return by_feature(self.code, self.trained.dict_size)

    @property
    def text(self) -> Text:
        return self.evidence.text


@pytest.fixture(scope="session")
def toy(toy_cache: Path, toy_transcoder: Path) -> Toy:
    reader, trained = CacheReader.open(toy_cache), load_transcoder(toy_transcoder)
    settings = FeatureSettings(
        block_rows=256, context_tokens=3, top_contexts=4, interval_contexts=2, uniform_contexts=3, silent_contexts=2
    )
    blocks = encode_part(reader, trained, settings, block_starts(reader, settings), progress=Silent())
    view = reader.split("held_out")
    rows = view.rows(slice(0, len(view)))
    kept = np.flatnonzero(rows.tokens != SPECIAL)
    dense = trained.encode(rows.source.float()).numpy()
    dense[rows.tokens == SPECIAL] = 0
    return Toy(
        reader=reader,
        trained=trained,
        settings=settings,
        blocks=blocks,
        evidence=evidence_of(blocks, reader, trained, settings),
        dense=dense,
        kept=kept,
        source=rows.source.float(),
        target=rows.target.float(),
    )


@pytest.fixture(scope="session")
def browser() -> "Generator[WebDriver]":
    """A Chromium without a screen, for all tests that open pages; no name resolves in it."""
    from selenium import webdriver

    found = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    assert found, "Chromium is needed: apt-get install chromium chromium-driver"
    driver = shutil.which("chromedriver")
    assert driver, "chromedriver is needed: apt-get install chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    # No name resolves: anything that a page might request from a network is refused.
    arguments = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
    )
    for argument in (*arguments, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driven = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield driven
    driven.quit()
