"""Settings from a file and from ``--set``: every problem is one sentence that names the key and where it was given."""

from pathlib import Path

import pytest

from common.errors import UsageError
from nestcoder.config import load_settings

FILE = """\
model: gpt2
train:
  steps: 60
  dict_size: 64
  top_k: 4
cache:
  shard_rows: 8192
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "p.yaml"
    path.write_text(FILE)
    return path


def problem(path: Path | None, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_settings(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ('runs="a\\0b"', "NUL"),
        ("cache.split_seed=1180591620717411303424", "cache.split_seed:"),
        ("train.steps=" + "9" * 5000, "at most 40 digits, not 5000"),
        ("train.lr=.inf", "finite"),
        ("train.lr=.nan", "finite"),
        ("train.lr=1e999", "finite"),
        ("runs=$NO_SUCH_VARIABLE/runs", "NO_SUCH_VARIABLE"),
        ("evaluate.bootstrap=1000000000000", "less than or equal to 100000"),
        ("evaluate.samples_per_group=1e12", "less than or equal to 10000"),
        ("evaluate.sample_contexts=1e12", "less than or equal to 1000"),
        ("train.steps.x=1", "valid integer"),
        ("train..steps=1", "KEY=VALUE"),
        ("evaluate.seed=-1", "greater than or equal to 0"),
    ],
)
def test_an_impossible_override_is_named(override: str, words: str) -> None:
    text = problem(None, override)
    assert words in text
    assert "--set" in text
    assert override.split("=")[0].split(".")[1 if "." in override.split("=")[0] else 0] in text
    assert max(map(len, text.split("\n"))) < 250


def test_a_problem_across_settings_names_those_that_were_given(file: Path) -> None:
    """Not the line of the section, and not the file if an override is wrong."""
    assert problem(file, "cache.segment_rows=10000").startswith("--set cache.segment_rows=10000 and")
    assert f"{file}:7" in problem(file, "cache.segment_rows=10000")
    file.write_text(FILE.replace("steps: 60", "prefixes: [4, 2]"))
    assert problem(file).startswith(f"{file}:3: train: prefixes [4, 2]")
    text = problem(None, "train.prefixes=[8, 64]", "train.group_sizes=[8, 56]")
    assert text.startswith("--set train.prefixes=[8, 64] and --set train.group_sizes=[8, 56]")


def test_an_empty_section_keeps_its_defaults(file: Path) -> None:
    file.write_text("model: gpt2\ntrain:\n  # steps: 5\ncache:\n")
    assert load_settings(file) == load_settings(None, ["model=gpt2"])
    assert load_settings(file, ["train.steps=200"]).train.steps == 200
    file.write_text("model:\n")
    assert f"{file}:1: model:" in problem(file)


def test_paths_in_settings_are_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    overrides = [
        "runs=~/runs",
        "model=$SCRATCH/gpt2",
        "harvest.dataset=${SCRATCH}/text.jsonl",
        "cache.remote=s3://$HOME",
    ]
    settings = load_settings(None, overrides)
    assert settings.runs == f"{tmp_path}/runs"
    assert settings.model == "/scratch/me/gpt2"
    assert settings.harvest.dataset == "/scratch/me/text.jsonl"
    assert settings.cache.remote == f"s3://{tmp_path}"
