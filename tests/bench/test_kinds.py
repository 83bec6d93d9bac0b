"""The benchmark of kinds on an embedded model at toy size, and its table's lines."""

import json
import os
import random
from pathlib import Path

import pytest

from bench import kinds

ROOT = Path(__file__).parents[2]
MEASURED = {
    "model": "toy",
    "title": "a transcoder a layer",
    "name": "set-finetuned",
    "prefixes": [16, 2048],
    "fvu": [0.41, 0.31],
    "fvu_interval": [[0.40, 0.42], [0.30, 0.32]],
    "l0": [3.25, 16.0],
    "silent": 0.015,
    "crossing": 0.25,
    "spliced": [
        {"top1": 0.71, "kl": 0.12, "delta": 0.22, "delta_interval": [0.21, 0.23]},
        {"top1": 0.81, "kl": 0.11, "delta": -0.02, "delta_interval": None},
    ],
}


def test_a_line_has_every_number() -> None:
    """Different numbers, so that a number in the wrong column is noticed."""
    assert kinds.line_of(MEASURED) == (
        "| toy | a transcoder a layer | fine-tuned | 2,048 | 0.3100 | 0.3000 - 0.3200 | 16.0 | 1.5% | 25.0% | 81.0% "
        "| 0.1100 | -0.0200 |  |"
    )
    assert kinds.line_of(MEASURED | {"fvu_interval": None, "name": "sae-in", "crossing": None}, 0) == (
        "| toy | a transcoder a layer |  | 16 | 0.4100 |  | 3.2 |  |  | 71.0% | 0.1200 | +0.2200 | +0.2100 - +0.2300 |"
    )
    assert kinds.line_of(MEASURED).count("|") == kinds.HEADING.count("|")


def bench_of(folder: Path, *chosen: str, finetune: tuple[str, ...] = ()) -> kinds.Bench:
    """Two layers of an embedded model, on a toy text."""
    words = ["the", "old", "man", "sat", "by", "the", "river", "and", "watched", "boats", "go", "past"]
    draw = random.Random(0)
    documents = [" ".join(draw.choices(words, k=40)) for _ in range(400)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    sizes = {
        "train-tokens": 2048,
        "held-out-tokens": 300,
        "steps": 2,
        "batch-rows": 64,
        "lm-tokens": 200,
        "finetune-tokens": 1,
    }
    stated = [str(folder), *(f"--{name}={value}" for name, value in sizes.items())]
    stated += ["--dataset", str(folder / "text.jsonl"), "--layers", "3", "4"]
    stated += ["--kinds", *chosen, "--finetune", *finetune]
    options = kinds.parser().parse_args(stated)
    return kinds.Bench(str(ROOT / "models" / "gpt2-stdlib"), options)


def test_both_forms_of_report_are_read_and_a_rerun_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = bench_of(tmp_path, "sae-out", "clt-all")
    found = list(bench.rows())
    assert [entry["name"] for entry in found] == ["sae-out", "clt-all"]
    assert found[0]["crossing"] is None
    assert found[1]["crossing"] > 0
    assert all(entry["prefixes"] == [96, 288, 672, 1536] for entry in found)
    for stage in ("run_evaluate", "run_evaluate_joint", "run_together"):
        monkeypatch.setattr(kinds.nestcoder, stage, None)
    assert list(bench.rows()) == found


@pytest.mark.skipif(os.environ.get("NESTCODER_FULL") != "1", reason="a minute of processor time")
def test_every_kind_before_and_after_fine_tuning(tmp_path: Path) -> None:
    names = [kind.name for kind in kinds.KINDS]
    found = list(bench_of(tmp_path, *names, finetune=tuple(names)).rows())
    assert [entry["name"] for entry in found] == [name for kind in names for name in (kind, f"{kind}-finetuned")]
    window_0 = [entry["crossing"] for entry in found if entry["name"].startswith("clt-0")]
    assert window_0 == [0, 0]
