"""The whole pipeline as its users run it: three commands, both model families, offline."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import nestcoder
from common.errors import MismatchError, NestcoderError
from nestcoder.cli import command_line

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "harvest.train_tokens=24000", "harvest.held_out_tokens=4000", "harvest.context=128", "train.steps=150",
    "train.batch_rows=256", "train.prefixes=[48, 192, 768]", "train.dict_size=768", "train.top_k=8",
]  # fmt: skip
LIBRARIES_OF_THE_LANGUAGE_MODEL = ("transformers", "transformer_lens", "datasets")

# Runs a command with every socket refused and, for the stages that need no language model, its libraries not there:
# nothing of ours is loaded yet, and no import finds them.
_FENCED = """
import socket, sys, warnings
def refuse(*arguments, **options): raise OSError("the network is off")
socket.socket.connect = socket.create_connection = refuse
absent = sys.argv.pop(1).split(",")
loaded = [name for name in sys.modules if name.partition(".")[0] in absent]
sys.modules.update(dict.fromkeys([*absent, *loaded]))
warnings.simplefilter("ignore")
from nestcoder.__main__ import main
main()
"""


@dataclass(frozen=True)
class Pipeline:
    """A finished harvest, training and evaluation."""

    layer_folder: Path
    metrics: dict[str, Any]


def run(
    python: str, runs: Path, model: str, *arguments: str, without: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    settings = [item for setting in (*SMALL, f"runs={runs}") for item in ("--set", setting)]
    command = [python, "-c", _FENCED, ",".join(without), "--json", *settings, "--model", model]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500
    )


def run_here(runs: Path, model: str, *arguments: str) -> None:
    """The same in this process, which has the libraries already. Raises what the command raises."""
    settings = [item for setting in (*SMALL, f"runs={runs}") for item in ("--set", setting)]
    done = CliRunner().invoke(command_line, ["--json", *settings, "--model", model, *arguments])
    if done.exception:
        raise done.exception


@pytest.fixture(scope="module", params=["gpt2-stdlib", "gemma2-stdlib"])
def pipeline(request: pytest.FixtureRequest, warm_python: str, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    runs = tmp_path_factory.mktemp("runs")
    model = f"models/{request.param}"
    done = {
        "harvest": run(warm_python, runs, model, "harvest", "--layer", "8", "--device", "cpu"),
        "train": run(warm_python, runs, model, "train", "--layer", "8", without=LIBRARIES_OF_THE_LANGUAGE_MODEL),
        "evaluate": run(warm_python, runs, model, "evaluate", without=LIBRARIES_OF_THE_LANGUAGE_MODEL),
    }
    for command, process in done.items():
        assert process.returncode == 0, f"{command}\n{process.stdout}\n{process.stderr}"
    return Pipeline(runs / request.param / "layer08", json.loads(done["evaluate"].stdout))


def _metrics(pipeline: Pipeline) -> dict[str, Any]:
    (path,) = pipeline.layer_folder.glob("report/main/**/metrics.json")
    return json.loads(path.read_text())


def test_the_transcoder_beats_the_mean_and_longer_prefixes_explain_more(pipeline: Pipeline) -> None:
    metrics = _metrics(pipeline)
    per_prefix = metrics["fvu_per_prefix"]
    assert len(per_prefix) == 3
    assert per_prefix == sorted(per_prefix, reverse=True)
    assert 0.0 < metrics["fvu"] == per_prefix[-1] < 0.9
    assert 0 < metrics["l0"] <= 8
    assert metrics["tokens_masked"] > 0


def test_the_report_is_complete(pipeline: Pipeline) -> None:
    folder = next(pipeline.layer_folder.glob("report/main/**/metrics.json")).parent
    names = {path.name for path in folder.rglob("*")}
    assert {"metrics.json", "summary.txt"} <= names
    assert {path.suffix for path in folder.rglob("*")} >= {".png", ".svg"}


def test_the_log_names_every_metric(pipeline: Pipeline) -> None:
    lines = (pipeline.layer_folder / "transcoder" / "main" / "metrics.jsonl").read_text().splitlines()
    last = [record for record in map(json.loads, lines) if "loss" in record][-1]
    names = (
        "step",
        "loss",
        "l2_loss",
        "aux_loss",
        "batch_fvu",
        "batch_fvu_min",
        "batch_fvu_max",
        "batch_fvu_mean",
        "lr",
    )
    for name in names:
        assert name in last, name


def test_the_transcoder_loads_in_one_line_and_its_prefixes_are_slices(pipeline: Pipeline) -> None:
    transcoder = nestcoder.load_transcoder(pipeline.layer_folder / "transcoder" / "main")
    source = torch.randn(5, 96)
    code = transcoder.encode(source)
    assert code.shape == (5, 768)
    assert int((code != 0).sum(dim=1).max()) <= 8
    short = code.clone()
    short[:, 48:] = 0
    torch.testing.assert_close(transcoder.forward(source, prefix=48), transcoder.decode(short), rtol=1e-5, atol=1e-5)
    assert transcoder.forward(source).shape == (5, 96)


def test_running_again_finds_nothing_to_do(pipeline: Pipeline) -> None:
    runs = pipeline.layer_folder.parents[1]
    model = f"models/{pipeline.layer_folder.parent.name}"
    weights = pipeline.layer_folder / "transcoder" / "main" / "transcoder.safetensors"
    before = {
        path: path.read_bytes() for path in [weights, *pipeline.layer_folder.glob("cache/**/*")] if path.is_file()
    }
    for command in ("harvest", "train"):
        run_here(runs, model, command, "--layer", "8", "--device", "cpu")
    assert {path: path.read_bytes() for path in before} == before


def test_other_settings_for_a_finished_run_are_refused_by_name(pipeline: Pipeline) -> None:
    runs = pipeline.layer_folder.parents[1]
    model = f"models/{pipeline.layer_folder.parent.name}"
    cases = [(["--set", "harvest.context=64"], "harvest", "context"), (["--set", "train.lr=1e-5"], "train", "lr")]
    for override, command, word in cases:
        with pytest.raises(MismatchError, match=word):
            run_here(runs, model, *override, command, "--layer", "8", "--device", "cpu")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["harvest", "--layer", "12"], 2, ["12", "layers"]),
        (["--model", "models/absent", "harvest", "--layer", "1"], 2, ["absent"]),
        (["harvest", "--layer", "1", "--device", "cuda:7"], 2, ["cuda:7"]),
        (["harvest", "--layer", "1", "--device", "toaster"], 2, ["toaster"]),
        (["--set", "harvest.dataset=/no/such/file.txt", "harvest", "--layer", "1"], 2, ["/no/such/file.txt"]),
        (["--set", "harvest.train_tokens=5000000000", "harvest", "--layer", "1", "--dry-run"], 7, ["GB"]),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(
    arguments: list[str], code: int, words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(NestcoderError) as caught:
        run_here(tmp_path, "models/gpt2-stdlib", *arguments)
    assert caught.value.exit_code == code
    for word in words:
        assert word in str(caught.value)
    assert not list(tmp_path.rglob("*.json"))
