"""A cross-layer transcoder for circuit-tracer and back: what EXPORT.json says is what the file computes."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import nestcoder
from common.errors import MismatchError, UsageError
from nestcoder.cli import command_line

MODEL = Path(__file__).parents[3] / "models" / "gpt2-stdlib"
LAYERS = [3, 5]
SMALL = (
    "harvest.train_tokens=1200", "harvest.held_out_tokens=400", "harvest.context=64", "cache.held_out_fraction=0.3",
    "train.kind=cross-layer", "train.steps=8", "train.warmup_steps=2", "train.batch_rows=64",
    "train.held_out_rows=128", "train.prefixes=[16, 64]", "train.top_k=4", "evaluate.bootstrap=0",
)  # fmt: skip


def settings_of(runs: Path, *more: str) -> nestcoder.PipelineSettings:
    return nestcoder.load_settings(overrides=[*SMALL, f"model={MODEL}", f"runs={runs}", *more])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("joint") / "runs"
    nestcoder.run_harvest(settings_of(folder), LAYERS, device="cpu")
    nestcoder.run_train(settings_of(folder), LAYERS, name="clt", device="cpu")
    over = settings_of(folder, "train.select_over=layers")
    nestcoder.run_train(over, LAYERS, name="over", device="cpu")
    return folder


@pytest.mark.parametrize(("name", "prefix"), [("clt", None), ("clt", 16), ("over", None)])
def test_an_export_that_is_imported_again_has_the_stated_numbers(
    runs: Path, tmp_path: Path, name: str, prefix: int | None
) -> None:
    settings = settings_of(runs)
    made = nestcoder.run_export(
        settings, LAYERS, to=["circuit-tracer"], out=tmp_path, name=name, prefix=prefix, device="cpu"
    )[0]
    folder = Path(made["folder"])
    assert folder == tmp_path / ("circuit_tracer-p16" if prefix else "circuit_tracer")
    exported = json.loads((folder / "EXPORT.json").read_text())
    assert exported["never_firing_layers"] == [layer for layer in range(12) if layer not in LAYERS]
    known = nestcoder.run_evaluate_joint(settings, LAYERS, names=[name], device="cpu")["dictionaries"][name]
    index = 0 if prefix else 1
    imported = nestcoder.run_import(settings, str(folder), LAYERS, name=f"{name}-{prefix}-back", device="cpu")[3]
    back = nestcoder.run_evaluate_joint(settings, LAYERS, names=[f"{name}-{prefix}-back"], device="cpu")
    found = back["dictionaries"][f"{name}-{prefix}-back"]
    assert found["prefixes"] == ([16] if prefix else [16, 64])
    for number, layer in enumerate(LAYERS):
        held_out = exported["layers"][str(layer)]["held_out"]
        assert held_out["before"]["fvu"] == pytest.approx(known["fvu_per_layer_and_prefix"][number][index])
        assert held_out["before"]["l0"] == pytest.approx(known["l0_per_layer_and_prefix"][number][index])
        assert held_out["after"]["fvu"] == pytest.approx(found["fvu_per_layer_and_prefix"][number][-1], rel=1e-4)
        assert held_out["after"]["l0"] == pytest.approx(found["l0_per_layer_and_prefix"][number][-1], rel=1e-3)
        assert held_out["after"]["l0"] == pytest.approx(held_out["before"]["l0"], rel=0.25)
    assert imported["imported"]["measured"]["fvu"] == pytest.approx(found["fvu"], rel=1e-6)
    assert found["crossing"] == pytest.approx(known["crossing"], abs=1e-3) or prefix


def test_thresholds_that_were_trained_are_kept(runs: Path, tmp_path: Path) -> None:
    settings = settings_of(runs, "train.activation=jumprelu")
    nestcoder.run_train(settings, LAYERS, name="jump", device="cpu")
    made = nestcoder.run_export(settings, LAYERS, to=["circuit-tracer"], out=tmp_path, name="jump", device="cpu")[0]
    for record in made["layers"].values():
        assert record["exactness"] == "exact up to rounding"
        assert record["held_out"]["after"]["fvu"] == pytest.approx(record["held_out"]["before"]["fvu"], rel=1e-3)
    nestcoder.run_import(settings, made["folder"], LAYERS, name="jump-back", device="cpu")
    joint = runs / "gpt2-stdlib" / "layers03_05" / "transcoder"
    ours, back = (nestcoder.load_cross_layer(joint / name) for name in ("jump", "jump-back"))
    for number in range(2):
        torch.testing.assert_close(back.piece(number).W_enc, ours.piece(number).W_enc, rtol=1e-4, atol=1e-6)
        assert torch.equal(back.piece(number).W_dec, ours.piece(number).W_dec)


def test_what_the_format_cannot_express_is_refused_in_one_sentence(runs: Path, tmp_path: Path) -> None:
    settings = settings_of(runs)

    def export(**changed: object) -> None:
        given = {"to": ["circuit-tracer"], "out": tmp_path, "name": "clt", "device": "cpu"}
        nestcoder.run_export(settings, LAYERS, **(given | changed))

    with pytest.raises(UsageError, match="saelens holds dictionaries of one layer each"):
        export(to=["saelens", "circuit-tracer"])
    with pytest.raises(UsageError, match="17 is not a prefix"):
        export(prefix=17)
    skips = settings_of(runs, "train.skip=true", "train.steps=1", "train.warmup_steps=0")
    nestcoder.run_train(skips, LAYERS, name="skips", device="cpu")
    with pytest.raises(UsageError, match="no place for the skips"):
        export(name="skips")
    assert not list(tmp_path.iterdir())
    export()
    with pytest.raises(UsageError, match="has another export"):
        export(name="over")
    with pytest.raises(MismatchError, match="of layers 3, 5, not of 3"):
        nestcoder.run_import(settings, str(tmp_path / "circuit_tracer"), [3], name="one", device="cpu")


def test_the_commands_plan_export_and_import(runs: Path, tmp_path: Path) -> None:
    given = ["--set", f"runs={runs}", "--set", f"model={MODEL}", "--set", "evaluate.bootstrap=0"]
    layers = ["--layer", "3", "--layer", "5"]
    export = [*given, "export", str(tmp_path), *layers, "--name", "clt", "--to", "circuit-tracer", "--device", "cpu"]
    planned = CliRunner().invoke(command_line, [*export, "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert "and 10 that never fire" in planned.output
    assert not (tmp_path / "circuit_tracer").exists()
    done = CliRunner().invoke(command_line, export)
    assert done.exit_code == 0, done.output
    # The folder that was exported into has one dictionary, in a folder of its tool.
    taken = [*given, "import", str(tmp_path), *layers, "--as", "theirs", "--device", "cpu"]
    found = CliRunner().invoke(command_line, taken)
    assert found.exit_code == 0, found.output
    assert "in circuit_tracer; it is used" in " ".join(found.output.split())
    config = json.loads((runs / "gpt2-stdlib" / "layers03_05" / "transcoder" / "theirs" / "config.json").read_text())
    assert config["imported"]["origin"] == f"{tmp_path}/circuit_tracer"
    assert "layers 3, 5: circuit-tracer, mlp_in to mlp_out, 64 features, jumprelu" in found.output
