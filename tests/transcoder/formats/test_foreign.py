"""The same dictionary, written in every layout that is read, computes the same."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from common.errors import DamagedError, MismatchError, UsageError
from transcoder.formats import foreign
from transcoder.formats.about import About
from transcoder.formats.foreign import FORMATS, WRITERS, Wanted, read_foreign, read_named
from transcoder.rules.relu import ReLU
from transcoder.transcoder import Transcoder

WANTED = Wanted(d_source=6, d_target=5, layer=8, dict_size=32, l0=4.0)


def arrays() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (6, 24), "b_enc": (24,), "W_dec": (24, 5), "b_dec": (5,), "threshold": (24,)}
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return drawn | {"threshold": drawn["threshold"].abs()}


CFG = {
    "architecture": "jumprelu_transcoder",
    "apply_b_dec_to_input": False,
    "normalize_activations": "none",
    "metadata": {"hook_name": "blocks.8.ln2.hook_normalized", "hook_name_out": "blocks.8.hook_mlp_out"},
}


def write_saelens(folder: Path, *, tensors: dict[str, torch.Tensor] | None = None, **changed: object) -> Path:
    folder.mkdir(parents=True)
    save_file(arrays() if tensors is None else tensors, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(CFG | changed))
    return folder


def write_circuit_tracer(folder: Path, *, layer: int = 8, hook: str = "ln2.hook_normalized", more: str = "") -> Path:
    folder.mkdir(parents=True)
    tensors = arrays()
    tensors["activation_function.threshold"] = tensors.pop("threshold")
    tensors["W_enc"] = tensors["W_enc"].T.contiguous()
    save_file(tensors, folder / f"layer_{layer}.safetensors")
    config = f"model_name: gpt2\nfeature_input_hook: '{hook}'  # as trained\nfeature_output_hook: hook_mlp_out\n{more}"
    (folder / "config.yaml").write_text(config)
    return folder


def write_google(folder: Path) -> Path:
    path = folder / "layer_8" / "width_16k" / "average_l0_12" / "params.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, **{name: tensor.numpy() for name, tensor in arrays().items()})
    return folder


@pytest.mark.parametrize("write", [write_saelens, write_circuit_tracer, write_google])
def test_every_layout_gives_the_same_dictionary(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    found = read_foreign(write(tmp_path / "there"), WANTED)
    known = {name: tensor.double() for name, tensor in arrays().items()}
    source = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    pre = source.double() @ known["W_enc"] + known["b_enc"]
    expected = (pre * (pre > known["threshold"])) @ known["W_dec"] + known["b_dec"]
    assert found.source_view == "ln2_normalized"
    torch.testing.assert_close(
        found.reconstruct(found.sparse_code(source), source)[:, -1].double(), expected, atol=1e-5, rtol=1e-5
    )


def test_a_plain_transcoder_has_threshold_0(tmp_path: Path) -> None:
    tensors = {name: tensor for name, tensor in arrays().items() if name != "threshold"}
    metadata = {"hook_name": "blocks.8.mlp.hook_in", "hook_name_out": "blocks.8.hook_mlp_out"}
    folder = write_saelens(tmp_path / "there", tensors=tensors, architecture="transcoder", metadata=metadata)
    found = read_foreign(folder / "sae_weights.safetensors", WANTED)
    assert found.source_view == "mlp_in"
    source = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    pre = source @ tensors["W_enc"] + tensors["b_enc"]
    torch.testing.assert_close(found.sparse_code(source).dense(24), pre.relu(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"architecture": "gated"}, "'gated'"),
        ({"metadata": {"hook_name": "blocks.8.attn.hook_z", "hook_name_out": "blocks.8.hook_mlp_out"}}, "reads"),
        ({"normalize_activations": "expected_average_only_in"}, "scaled"),
        ({"metadata": {"hook_name": "blocks.8.mlp.hook_in", "hook_name_out": "blocks.8.attn.hook_z"}}, "target"),
        ({"metadata": {"hook_name": "blocks.3.mlp.hook_in", "hook_name_out": "blocks.3.hook_mlp_out"}}, "layer 3"),
        ({"metadata": 7}, "do not say which tensor"),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path: Path, changed: dict[str, object], told: str) -> None:
    with pytest.raises(MismatchError, match=told):
        read_foreign(write_saelens(tmp_path / "there", **changed), WANTED)


def test_wrong_shapes_are_damage_and_other_widths_a_mismatch(tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="b_dec has shape"):
        read_foreign(write_saelens(tmp_path / "one", tensors=arrays() | {"b_dec": torch.zeros(4)}), WANTED)
    with pytest.raises(DamagedError, match="NaN"):
        read_foreign(
            write_saelens(tmp_path / "two", tensors=arrays() | {"b_enc": torch.full((24,), torch.nan)}), WANTED
        )
    with pytest.raises(MismatchError, match="maps 7 to 5"):
        read_foreign(write_saelens(tmp_path / "three", tensors=arrays() | {"W_enc": torch.zeros(7, 24)}), WANTED)


def test_a_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_foreign(tmp_path / "nothing", WANTED)
    with pytest.raises(UsageError, match=r"no dictionary of a known tool; it has nothing\.") as raised:
        read_foreign(tmp_path, WANTED)
    assert "openmoss" in raised.value.remedy
    (tmp_path / "cfg.json").write_text("{}")
    os.mkfifo(tmp_path / "sae_weights.safetensors")
    with pytest.raises(UsageError, match=r"it has cfg\.json, sae_weights\.safetensors \(no regular file\)"):
        read_foreign(tmp_path, WANTED)
    with pytest.raises(UsageError, match="not a dictionary of a known tool"):
        read_foreign(tmp_path / "cfg.json", WANTED)


def test_damage_of_any_layout_has_a_remedy(tmp_path: Path) -> None:
    folder = write_saelens(tmp_path / "one")
    weights = folder / "sae_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(DamagedError, match="safetensors file cannot be read") as raised:
        read_foreign(folder, WANTED)
    assert raised.value.where == str(weights)
    assert raised.value.remedy == "Fetch it again, or write it again with its own tool."


def test_a_hook_that_the_file_does_not_state_can_be_named(tmp_path: Path) -> None:
    folder = write_saelens(tmp_path / "one")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "metadata": {}}))
    with pytest.raises(MismatchError, match="do not say which tensor") as raised:
        read_foreign(folder, WANTED)
    assert "blocks.8.mlp.hook_in" in raised.value.remedy


def test_a_toy_layout_is_a_reader_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(path: Path, _wanted: Wanted) -> Path | None:
        return path if path.suffix == ".toy" else None

    def read(path: Path, _wanted: Wanted) -> Transcoder:
        return Transcoder(*load_file(path).values(), rule=ReLU(), name="toy")

    given = [torch.randn(24, 6), torch.zeros(24), torch.randn(24, 5), torch.zeros(5)]
    save_file(dict(zip("abcd", given, strict=True)), tmp_path / "one.toy")
    monkeypatch.setattr(foreign, "FORMATS", {"toy": foreign.Format(find, read), **foreign.FORMATS})  # the one line
    assert torch.equal(read_foreign(tmp_path / "one.toy", WANTED).W_dec, given[2])


def test_every_writer_has_a_reader_and_a_folder_of_its_own(about: About) -> None:
    assert {writer.format for writer in WRITERS.values()} <= set(FORMATS)
    places = [writer.folder(about, 2048, 51.6) for writer in WRITERS.values()]
    assert places == [
        "saelens/blocks.8.mlp_out",
        "saelens/blocks.8.mlp_out.jumprelu",
        "sparsify/h.8.mlp",
        "dictionary_learning/layer08/trainer_0",
        "circuit_tracer",
        "gemma_scope/layer_8/width_2k/average_l0_52",
    ]


def test_the_name_of_the_layout_is_returned(tmp_path: Path) -> None:
    assert read_named(write_saelens(tmp_path / "a"), WANTED)[0] == "saelens"
    assert read_named(write_circuit_tracer(tmp_path / "b"), WANTED)[0] == "circuit-tracer"
    assert read_named(write_google(tmp_path / "c"), WANTED)[0] == "gemma-scope"


def test_google_of_another_layer_is_refused(tmp_path: Path) -> None:
    file = write_google(tmp_path / "c") / "layer_8" / "width_16k" / "average_l0_12" / "params.npz"
    with pytest.raises(MismatchError, match="layer 8"):
        read_foreign(file, replace(WANTED, layer=7))
