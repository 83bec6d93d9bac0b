"""A cross-layer transcoder fine-tuned end to end: the KL divergence falls; a killed run ends with the same bytes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nestcoder
from common.errors import MismatchError, UsageError
from common.progress import Silent
from nestcoder.cli import command_line
from tests.helpers.progress import StopAt, StoppedError
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.formats.cross_layer import save_cross_layer

Settings = Callable[..., nestcoder.PipelineSettings]
LAYERS = [4, 6, 8]
TEN_STEPS = ("finetune.tokens=1280", "finetune.lr=0.002", "evaluate.lm_tokens=400")
JOINT = Path("gpt2-stdlib/layers04_06_08/transcoder")


def finetune(settings: nestcoder.PipelineSettings, **given: Any) -> dict[str, Any]:
    return nestcoder.run_finetune(settings, LAYERS, **({"name": "clt", "device": "cpu"} | given))


def write_probe(runs: Path) -> None:
    """Of layer 4: words whose source says their letter, along what some feature reads."""
    generator = torch.Generator().manual_seed(0)
    letter = torch.arange(26).repeat_interleave(8).repeat(2)
    rows = nestcoder.load_cross_layer(runs / JOINT / "clt").piece(0).W_enc.detach()
    source = 8 * torch.nn.functional.normalize(rows, dim=1)[letter]
    arrays = {
        "source": source + 0.1 * torch.randn(source.shape, generator=generator),
        "target": torch.randn(source.shape, generator=generator),
        "letter": letter,
        "split": (torch.arange(len(letter)) >= len(letter) // 2).to(torch.uint8),
    }
    folder = runs / "gpt2-stdlib/layer04/probe/first-letter"
    folder.mkdir(parents=True)
    save_file(arrays, folder / "probe.safetensors")
    fingerprint = nestcoder.open_cache(runs / "gpt2-stdlib/layer04/cache").fingerprint
    about = {"version": 1, "kind": "first-letter", "words": ["word"] * len(letter), "fingerprint": fingerprint}
    (folder / "probe.json").write_text(json.dumps(about))


@pytest.fixture(scope="module")
def tuned(
    trained: Path, settings_in: Settings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    runs = tmp_path_factory.mktemp("tuned") / "runs"
    shutil.copytree(trained, runs)
    write_probe(runs)
    return runs, finetune(settings_in(runs, *TEN_STEPS))


def test_ten_steps_reduce_the_divergence(tuned: tuple[Path, dict[str, Any]], settings_in: Settings) -> None:
    runs, metrics = tuned
    for old, new in zip(
        *(metrics["language_model"][which]["per_prefix"] for which in ("before", "after")), strict=True
    ):
        assert new["kl"] < 0.95 * old["kl"]
    lines = (runs / "gpt2-stdlib/finetune/clt-finetuned/steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 11))
    before = nestcoder.load_cross_layer(runs / JOINT / "clt")
    after = nestcoder.load_cross_layer(runs / JOINT / "clt-finetuned")
    assert after.config["finetuned"]["from"] == "clt"
    assert after.config["cache_fingerprint"] == before.config["cache_fingerprint"]
    scales = torch.tensor(after.config["target_scales"])
    for number, layer in enumerate(LAYERS):
        rows = after.piece(number).W_dec.unflatten(1, (-1, 96)) * scales[number : number + 2, None]
        torch.testing.assert_close(rows.square().sum(dim=(1, 2)), torch.ones(64), atol=1e-4, rtol=0)
        assert not torch.equal(after.piece(number).W_enc, before.piece(number).W_enc)
        assert not after.piece(number).b_dec[96:].any()
        entry = metrics["layers"][number]
        assert entry["layer"] == layer
        assert entry["features_compared"] > 0


def test_the_comparison_has_the_numbers_of_an_evaluation(
    tuned: tuple[Path, dict[str, Any]], settings_in: Settings
) -> None:
    runs, metrics = tuned
    settings = settings_in(runs, *TEN_STEPS)
    found = nestcoder.run_evaluate_joint(settings, LAYERS, names=["clt", "clt-finetuned"], lm=True, device="cpu")
    for name, which in (("clt", "before"), ("clt-finetuned", "after")):
        evaluated = found["dictionaries"][name]
        spliced = metrics["language_model"][which]["per_prefix"]
        for found_prefix, expected in zip(spliced, evaluated["language_model"]["per_prefix"], strict=True):
            assert found_prefix["kl"] == pytest.approx(expected["kl"], rel=1e-5)
            assert found_prefix["delta"] == pytest.approx(expected["delta"], rel=1e-4, abs=1e-6)
        for number, entry in enumerate(metrics["layers"]):
            assert entry[which]["fvu_per_prefix"] == pytest.approx(evaluated["fvu_per_layer_and_prefix"][number])
            assert entry[which]["l0_per_prefix"] == pytest.approx(evaluated["l0_per_layer_and_prefix"][number])
            absorption = evaluated["absorption_first_letter_per_layer"][number]
            assert entry[which]["absorption_first_letter"] == absorption["score"]
            assert entry[which]["absorption_reason"] == absorption["reason"]
        assert (
            evaluated["absorption_per_prefix"][-1] == metrics["layers"][0][which]["absorption_first_letter"] is not None
        )
    table = (runs / "gpt2-stdlib/finetune/clt-finetuned/report/summary.txt").read_text()
    assert "layer 6" in table
    assert table.count("first-letter absorption") == 1


def test_a_killed_run_ends_with_the_same_bytes(
    runs: Path, tuned: tuple[Path, dict[str, Any]], settings_in: Settings
) -> None:
    with pytest.raises(StoppedError):
        finetune(settings_in(runs, *TEN_STEPS), progress=StopAt(3))
    finetune(settings_in(runs, *TEN_STEPS))
    for name in (JOINT / "clt-finetuned/transcoder.safetensors", "gpt2-stdlib/finetune/clt-finetuned/steps.jsonl"):
        assert (runs / name).read_bytes() == (tuned[0] / name).read_bytes()


def test_several_processes_find_what_one_finds(
    runs: Path,
    settings_in: Settings,
    tuned: tuple[Path, dict[str, Any]],
    in_processes: Callable[..., list[int]],
) -> None:
    """Gradients are those of all processes' contexts, up to rounding; one process writes."""
    settings = settings_in(runs, *TEN_STEPS)
    request = nestcoder.stages.model.finetune_request(settings, LAYERS, name="clt", result=None, device="cpu")

    def work() -> None:
        from finetune.run import finetune_layers

        found = finetune_layers(request, fresh=False, progress=Silent())
        kl = found["language_model"]["after"]["per_prefix"][-1]["kl"]
        assert kl == pytest.approx(tuned[1]["language_model"]["after"]["per_prefix"][-1]["kl"], rel=1e-2)
        assert len(found["layers"]) == 3

    assert in_processes(2, work) == [0, 0]
    ours, alone = (nestcoder.load_cross_layer(folder / JOINT / "clt-finetuned") for folder in (runs, tuned[0]))
    for number in range(3):
        for name, array in alone.piece(number).arrays().items():
            torch.testing.assert_close(ours.piece(number).arrays()[name], array, rtol=1e-2, atol=2e-3)


def test_dictionaries_that_cannot_be_tuned_are_refused(runs: Path, settings_in: Settings) -> None:
    settings = settings_in(runs)
    with pytest.raises(UsageError, match="would replace"):
        finetune(settings, result="clt")
    with pytest.raises(UsageError, match="one cross-layer transcoder of several layers"):
        nestcoder.run_finetune(settings, [8], name="clt", device="cpu")
    made = nestcoder.load_cross_layer(runs / JOINT / "clt")
    over = CrossLayerTranscoder(
        [made.piece(number) for number in range(3)], layers=made.layers, window=1, top_k=4, over_layers=True
    )
    save_cross_layer(over, runs / JOINT / "over", config={"cache_fingerprint": made.config["cache_fingerprint"]})
    with pytest.raises(UsageError, match="selects over all of them at once"):
        finetune(settings, name="over")
    save_cross_layer(made, runs / JOINT / "other", config={"cache_fingerprint": "another"})
    with pytest.raises(MismatchError, match="trained on the caches another"):
        finetune(settings, name="other")


def test_a_dictionary_of_another_tool_keeps_the_norms_of_its_rows(
    runs: Path, settings_in: Settings, tmp_path: Path
) -> None:
    """Exported, written in other units as another tool might have, imported, and fine-tuned."""
    settings = settings_in(runs, *TEN_STEPS)
    plain = settings_in(runs, "train.kind=cross-layer", "train.window=1")
    nestcoder.run_train(plain, LAYERS, name="plain", device="cpu")  # circuit-tracer has no place for a skip
    given = {"to": ["circuit-tracer"], "out": tmp_path / "out", "name": "plain", "device": "cpu"}
    folder = Path(nestcoder.run_export(settings, LAYERS, **given)[0]["folder"])
    for layer in LAYERS:
        for kind, factors in (("enc", {"W_enc": 0.5, "b_enc": 0.5, "threshold": 0.5}), ("dec", {"W_dec": 2.0})):
            file = folder / f"W_{kind}_{layer}.safetensors"
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata()
            scaled = {
                name: array * factors.get(name.rpartition("_")[0], 1.0) for name, array in load_file(file).items()
            }
            save_file(scaled, file, metadata=metadata)
    nestcoder.run_import(settings, str(folder), LAYERS, name="theirs", device="cpu")
    metrics = finetune(settings, name="theirs")
    before, after = (metrics["language_model"][which]["per_prefix"][-1]["kl"] for which in ("before", "after"))
    assert after < before
    imported = nestcoder.load_cross_layer(runs / JOINT / "theirs")
    result = nestcoder.load_cross_layer(runs / JOINT / "theirs-finetuned")
    scales = torch.tensor(imported.config["target_scales"])
    for number in range(3):
        rows, tuned = (
            made.piece(number).W_dec.unflatten(1, (-1, 96)) * scales[number : number + 2, None]
            for made in (imported, result)
        )
        norms = rows.square().sum(dim=(1, 2)).sqrt()
        torch.testing.assert_close(norms, torch.full((64,), 2.0), rtol=1e-3, atol=0)
        torch.testing.assert_close(tuned.square().sum(dim=(1, 2)).sqrt(), norms, rtol=1e-3, atol=0)
        assert not torch.equal(rows, tuned)


@pytest.mark.parametrize("window", [0, 1, 2])
def test_every_window_is_spliced_and_compared_with_a_set(runs: Path, settings_in: Settings, window: int) -> None:
    """Per prefix, by the command; a window of 0 is what a set of the same transcoders would be."""
    across = settings_in(runs, "train.kind=cross-layer", f"train.window={window}", "train.steps=2")
    nestcoder.run_train(across, LAYERS, name="other", device="cpu")
    given = [f"--set={value}" for value in (f"runs={runs}", f"model={across.model}", "evaluate.lm_tokens=64")]
    layers = [word for layer in LAYERS for word in ("--layer", str(layer))]
    words = ["evaluate", *layers, "--name", "other", "--beside", "clt", "--together", "--device", "cpu"]
    done = CliRunner().invoke(command_line, [*given, "--set=evaluate.bootstrap=0", "--json", *words])
    assert done.exit_code == 0, done.output + repr(done.exception)
    found = json.loads(done.stdout)["dictionaries"]
    assert (found["other"]["crossing"] > 0) is (window > 0)
    for record in found.values():
        per_prefix = record["language_model"]["per_prefix"]
        assert [set(entry) >= {"kl", "delta", "top1"} for entry in per_prefix] == [True, True]
