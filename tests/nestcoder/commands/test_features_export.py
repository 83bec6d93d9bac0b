"""``features export``: a folder for each tool, and what is refused."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file

from common.errors import UsageError
from evaluate.features.evidence import read_evidence
from nestcoder.cli import command_line
from transcoder.formats.cross_layer import load_cross_layer, save_cross_layer


def _call(runs: Path, *arguments: str) -> Result:
    return CliRunner().invoke(command_line, ["--json", "--model", "toy", "--set", f"runs={runs}", *arguments])


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("circuit-tracer", {"index.json.gz", "layer_3.bin"}),
        ("neuronpedia", {"toy/3-nestcoder-main/model.jsonl", "toy/3-nestcoder-main/features/batch-0.jsonl.gz"}),
        ("delphi", {"latents/layers.3.mlp/config.json", "latents/layers.3.mlp/0_5.safetensors"}),
        ("jsonl", {"layer03.jsonl.gz"}),
        ("parquet", {"layer03.parquet"}),
    ],
)
def test_each_format_is_written(feature_runs: Path, tmp_path: Path, target: str, files: set[str]) -> None:
    result = _call(feature_runs, "features", "export", "--to", target, "--layer", "3", str(tmp_path / "out"))
    written = json.loads(result.stdout)
    assert files <= set(written["files"])
    assert all((tmp_path / "out" / path).is_file() for path in written["files"])


def test_an_existing_folder_and_missing_evidence_are_refused(feature_runs: Path, tmp_path: Path) -> None:
    arguments = ("features", "export", "--to", "jsonl", "--layer", "3")
    assert isinstance(_call(feature_runs, *arguments, str(tmp_path)).exception, UsageError)
    result = _call(feature_runs, *arguments, "--name", "other", str(tmp_path / "out"))
    assert "no feature evidence" in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["circuit-tracer", "delphi"])
def test_a_dry_run_writes_nothing_and_refuses_what_the_export_refuses(
    feature_runs: Path, tmp_path: Path, target: str
) -> None:
    arguments = ("features", "export", "--dry-run", "--to", target, "--layer", "3")
    plan = json.loads(_call(feature_runs, *arguments, str(tmp_path / "out")).stdout)["3"]
    assert plan["to"] == target
    assert plan["folder"] == str(tmp_path / "out")
    assert plan["bytes_about"] > 0
    assert not (tmp_path / "out").exists()
    assert isinstance(_call(feature_runs, *arguments, str(tmp_path)).exception, UsageError)


BOTH = ("--layer", "3", "--layer", "5", "--name", "clt")


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("circuit-tracer", {"index.json.gz", "layer_3.bin", "layer_5.bin"}),
        ("delphi", {"latents/layers.3.mlp/0_5.safetensors", "latents/layers.5.mlp/0_5.safetensors"}),
        ("jsonl", {"layer03.jsonl.gz", "layer05.jsonl.gz"}),
        ("parquet", {"layer03.parquet", "layer05.parquet"}),
    ],
)
def test_a_cross_layer_transcoder_goes_by_the_layers_that_its_features_read(
    joint_runs: Path, tmp_path: Path, target: str, files: set[str]
) -> None:
    arguments = ("features", "export", "--to", target, *BOTH)
    plans = json.loads(_call(joint_runs, *arguments, "--dry-run", str(tmp_path / "out")).stdout)
    assert [(layer, plan["to"]) for layer, plan in plans.items()] == [("3", target), ("5", target)]
    assert files <= set(json.loads(_call(joint_runs, *arguments, str(tmp_path / "out")).stdout)["files"])


def test_a_cross_layer_transcoder_is_one_set_of_neuronpedia_with_vectors_of_its_own_layers(
    joint_runs: Path, tmp_path: Path
) -> None:
    _call(joint_runs, "features", "export", "--to", "neuronpedia", *BOTH, str(tmp_path / "out"))
    dictionary = load_cross_layer(joint_runs / "toy" / "layers03_05" / "transcoder" / "clt")
    for number, layer in enumerate((3, 5)):
        folder = tmp_path / "out" / "toy" / f"{layer}-nestcoder-clt"
        (source,) = (json.loads(line) for line in (folder / "source.jsonl").read_text().splitlines())
        assert (source["id"], source["setName"]) == (f"{layer}-nestcoder-clt", "nestcoder-clt")
        lines = gzip.decompress((folder / "features" / "batch-0.jsonl.gz").read_bytes()).splitlines()
        own = dictionary.piece(number).W_dec[:, :6]
        for feature, line in enumerate(map(json.loads, lines)):
            assert line["vector"] == pytest.approx(own[feature].tolist(), rel=1e-3, abs=1e-6)
            assert line["hookName"] == f"blocks.{layer}.hook_mlp_out"


def test_delphi_gets_the_firings_of_a_layers_own_encoder(joint_runs: Path, tmp_path: Path) -> None:
    """Also where one layer of the dictionary is named alone."""
    named = ("--layer", "5", "--name", "clt")
    _call(joint_runs, "features", "export", "--to", "delphi", *named, str(tmp_path / "out"))
    evidence = read_evidence(joint_runs / "toy" / "layer05" / "features" / "clt")
    counts = np.zeros(32, dtype=np.int64)
    for file in (tmp_path / "out" / "latents" / "layers.5.mlp").glob("*.safetensors"):
        first = int(file.name.split("_")[0])
        found = np.bincount(load_file(file)["locations"][:, 2], minlength=1)
        counts[first : first + len(found)] += found
    assert np.array_equal(counts, evidence.arrays["firings"])


def test_evidence_of_other_weights_than_the_cross_layer_transcoder_has_is_refused(
    joint_runs: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(joint_runs, runs)
    folder = runs / "toy" / "layers03_05" / "transcoder" / "clt"
    dictionary = load_cross_layer(folder)
    dictionary.piece(0).b_enc.data += 1
    save_cross_layer(dictionary, folder, config=dict(dictionary.config))
    for words in (
        ("features", "show", "3/1", "--name", "clt"),
        ("features", "export", "--to", "neuronpedia", *BOTH, str(tmp_path / "out")),
    ):
        assert "taken from other weights" in str(_call(runs, *words).exception)
    shutil.rmtree(folder)
    assert _call(runs, "features", "show", "3/1", "--name", "clt").exit_code == 0, "what is left may be looked at"


def test_which_dictionary_is_meant_is_asked_where_several_have_the_layer(joint_runs: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(joint_runs, runs)
    shutil.copytree(runs / "toy" / "layers03_05", runs / "toy" / "layers03-05")
    words = ("features", "export", "--to", "delphi", "--dry-run", "--name", "clt", str(tmp_path / "out"))
    assert "Several cross-layer transcoders 'clt' have layer 3" in str(_call(runs, *words, "--layer", "3").exception)
    assert _call(runs, *words, "--layer", "3", "--layer", "5").exit_code == 0
