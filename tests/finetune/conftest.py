"""Three layers of an embedded model, harvested and trained for a few steps."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import nestcoder

MODEL = Path(__file__).parents[2] / "models" / "gpt2-stdlib"
SMALL = (
    "harvest.train_tokens=1200", "harvest.held_out_tokens=400", "harvest.context=64", "cache.held_out_fraction=0.3",
    "train.steps=8", "train.warmup_steps=2", "train.batch_rows=64", "train.held_out_rows=128",
    "train.prefixes=[16, 64]", "train.top_k=4", "evaluate.bootstrap=0", "evaluate.lm_tokens=128",
    "finetune.tokens=768", "finetune.batch_contexts=2", "finetune.checkpoint_every=2", "finetune.log_every=1",
    "finetune.warmup_steps=2",
)  # fmt: skip

Settings = Callable[..., nestcoder.PipelineSettings]


def settings_of(runs: Path, *overrides: str) -> nestcoder.PipelineSettings:
    return nestcoder.load_settings(overrides=[*SMALL, f"model={MODEL}", f"runs={runs}", *overrides])


@pytest.fixture(scope="session")
def settings_in() -> Settings:
    return settings_of


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with transcoders and an autoencoder of layers 4 and 8, and a cross-layer transcoder of 4, 6 and 8;
    copy it before it is changed."""
    runs = tmp_path_factory.mktemp("trained") / "runs"
    settings = settings_of(runs)
    nestcoder.run_harvest(settings, [4, 6, 8], device="cpu")
    nestcoder.run_train(settings, [4, 8], device="cpu")
    nestcoder.run_train(settings_of(runs, "train.kind=sae"), [8], name="sae", device="cpu")
    across = settings_of(runs, "train.kind=cross-layer", "train.window=1", "train.skip=true")
    nestcoder.run_train(across, [4, 6, 8], name="clt", device="cpu")
    return runs


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A copy of the runs folder, to change."""
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"
