"""A tiny run, as the commands leave it, made once for all tests of this folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

import nestcoder

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "harvest.train_tokens=2000", "harvest.held_out_tokens=600", "harvest.context=64", "cache.held_out_fraction=0.3",
    "train.steps=20", "train.warmup_steps=5", "train.batch_rows=128", "train.held_out_rows=256",
    "train.checkpoint_every=10", "train.prefixes=[16, 64]", "train.top_k=4", "evaluate.bootstrap=10",
)  # fmt: skip


def tiny_settings(runs: Path, *overrides: str) -> nestcoder.PipelineSettings:
    """Settings of a run of an embedded model that takes seconds."""
    model = ROOT / "models" / "gpt2-stdlib"
    return nestcoder.load_settings(overrides=[*TINY, f"model={model}", f"runs={runs}", *overrides])


@pytest.fixture(scope="session", name="tiny_settings")
def tiny_settings_fixture() -> Callable[..., nestcoder.PipelineSettings]:
    return tiny_settings


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a finished harvest, training and evaluation of layer 8. Copy it before you change it."""
    runs = tmp_path_factory.mktemp("tiny") / "runs"
    settings = tiny_settings(runs)
    nestcoder.run_harvest(settings, [8], device="cpu")
    nestcoder.run_train(settings, [8], device="cpu")
    nestcoder.run_evaluate(settings, [8], device="cpu")
    return runs
