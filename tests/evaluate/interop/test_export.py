"""The export of a trained transcoder: its folders, their records, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from common import disk
from common.errors import MismatchError, NumericalError, UsageError
from common.progress import Silent
from evaluate.interop.convert import Wish
from evaluate.interop.export import EXPORT_FILE, export_layers, plan_export
from evaluate.interop.layer import ExportRequest, LayerSource
from transcoder.formats.foreign import WRITERS, Wanted, read_foreign
from transcoder.formats.native import load_transcoder, save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

WIDTH = 12


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory, write_toy_cache: Callable[..., Path]) -> LayerSource:
    folder = tmp_path_factory.mktemp("run")
    cache = write_toy_cache(folder / "cache", held_out_rows=400, d_target=WIDTH)
    arrays = random_arrays(WIDTH, WIDTH, dict_size=64, seed=5)
    arrays["b_dec"] += 2
    save_transcoder(Transcoder(**arrays, rule=TopK(20), prefixes=(8, 24, 64)), folder / "transcoder", config={})
    return LayerSource(3, cache, folder / "transcoder")


def run(layer: LayerSource, out: Path, *to: str, **options: Any) -> list[dict[str, Any]]:
    request = ExportRequest(to=to or tuple(WRITERS), out=out, **options)
    return export_layers([layer], request, device="cpu", progress=Silent())


def test_every_format_says_what_it_is_and_reads_back(layer: LayerSource, tmp_path: Path) -> None:
    results = run(layer, tmp_path / "out")
    assert [result["format"] for result in results] == list(WRITERS)
    trained = load_transcoder(layer.transcoder)
    for result in results:
        folder = Path(result["folder"])
        record = result["layers"]["3"]
        stated = json.loads((folder / EXPORT_FILE).read_text())
        assert stated == {key: value for key, value in result.items() if key != "folder"}
        before, after = record["held_out"]["before"], record["held_out"]["after"]
        assert before["l0"] == pytest.approx(20, abs=1)
        assert record["held_out"]["rows"] == 375
        if record["exactness"] != "approximate":
            assert after["fvu"] == pytest.approx(before["fvu"], rel=1e-5)
        else:
            assert after["l0"] == pytest.approx(before["l0"], rel=0.1)
            assert after["fvu"] != before["fvu"]
        read = read_foreign(folder, Wanted(layer=3, d_source=WIDTH, d_target=WIDTH, dict_size=64, l0=20.0))
        assert read.dict_size == 64
        if result["format"] != "gemma-scope":
            assert read.prefixes == trained.prefixes
    assert not list((tmp_path / "out").glob(".*"))
    exact = {result["format"] for result in results if result["layers"]["3"]["exactness"] == "exact"}
    assert exact == {"saelens", "sparsify"}


def test_the_record_is_in_the_metadata_of_the_file_too(layer: LayerSource, tmp_path: Path) -> None:
    (result,) = run(layer, tmp_path, "saelens")
    with safe_open(Path(result["folder"]) / "sae_weights.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["nestcoder"]) == result["layers"]["3"]
    config = json.loads((Path(result["folder"]) / "cfg.json").read_text())
    assert config["metadata"]["nestcoder"] == result["layers"]["3"]


def test_a_prefix_is_exported_beside_all_features_and_has_its_own_fvu(layer: LayerSource, tmp_path: Path) -> None:
    full, small = (run(layer, tmp_path, "saelens", wish=Wish(prefix=size))[0] for size in (None, 24))
    assert Path(small["folder"]) == tmp_path / "saelens-p24" / "blocks.3.mlp_out"
    per_prefix = full["layers"]["3"]["held_out"]["per_prefix"]
    assert small["layers"]["3"]["held_out"]["after"]["fvu"] == pytest.approx(per_prefix[1]["before"]["fvu"], rel=1e-6)
    assert small["layers"]["3"]["prefix"]["of"] == 64


def test_an_export_can_be_repeated_and_replaces_only_itself(layer: LayerSource, tmp_path: Path) -> None:
    (result,) = run(layer, tmp_path, "sparsify")
    folder = Path(result["folder"])
    first = (folder / "sae.safetensors").read_bytes()
    run(layer, tmp_path, "sparsify")
    assert (folder / "sae.safetensors").read_bytes() == first

    stated = json.loads((folder / EXPORT_FILE).read_text())
    (folder / EXPORT_FILE).write_text(json.dumps(stated | {"of": {"3": "another"}}))
    with pytest.raises(UsageError, match="another") as raised:
        run(layer, tmp_path, "sparsify")
    assert "--fresh" in raised.value.remedy
    run(layer, tmp_path, "sparsify", fresh=True)

    (folder / EXPORT_FILE).unlink()
    for fresh in (False, True):
        with pytest.raises(UsageError, match="no export wrote"):
            run(layer, tmp_path, "sparsify", fresh=fresh)


def test_refusals_come_before_anything_is_written(layer: LayerSource, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for to, options, told in (
        (("saelens", "nothing"), {}, "'nothing' is not a format"),
        ((" ",), {}, "not a format"),
        (("saelens",), {"wish": Wish(prefix=9)}, "9 is not a prefix"),
    ):
        with pytest.raises(UsageError, match=told):
            run(layer, out, *to, **options)
    assert not out.exists()


def test_a_plan_writes_nothing(layer: LayerSource, tmp_path: Path) -> None:
    request = ExportRequest(to=("saelens", "circuit-tracer"), out=tmp_path / "out")
    plans = plan_export([layer], request, device="cpu", progress=Silent())
    assert [(plan.to, plan.layers, plan.silent_layers) for plan in plans] == [
        ("saelens", (3,), 0),
        ("circuit-tracer", (3,), 3),
    ]
    assert plans[1].bytes_at_most == 4 * plans[0].bytes_at_most
    assert not (tmp_path / "out").exists()


def test_a_file_that_computes_something_else_is_never_published(
    layer: LayerSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = WRITERS["saelens"]

    def write(folder: Path, transcoder: Transcoder, about: Any) -> None:
        honest.write(folder, transcoder.replaced(b_dec=transcoder.b_dec + 0.01), about)

    monkeypatch.setitem(WRITERS, "saelens", replace(honest, write=write))
    with pytest.raises(NumericalError, match="something else"):
        run(layer, tmp_path / "out", "saelens")
    assert not (tmp_path / "out" / "saelens").exists()


@pytest.mark.parametrize("stop", [1, 2, 3, 5, 8])
def test_an_interrupted_export_leaves_the_earlier_one_or_the_new_one(
    layer: LayerSource, tmp_path: Path, stop: int
) -> None:
    """Interrupted at any operation of the disk: no incomplete folder, and a rerun completes."""
    run(layer, tmp_path, "saelens")
    done = 0

    def watcher(when: str, _operation: str, _path: Path) -> None:
        nonlocal done
        done += when == "before"
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), disk.watch(watcher):
        run(layer, tmp_path, "saelens")
    folder = tmp_path / "saelens" / "blocks.3.mlp_out"
    assert not folder.exists() or (folder / EXPORT_FILE).is_file()
    (result,) = run(layer, tmp_path, "saelens")
    assert (Path(result["folder"]) / "cfg.json").is_file()
    assert not list(tmp_path.glob(".*exporting"))


def test_another_caches_transcoder_is_refused(layer: LayerSource, tmp_path: Path) -> None:
    trained = load_transcoder(layer.transcoder)
    save_transcoder(trained, tmp_path / "transcoder", config={"cache_fingerprint": "0" * 32})
    with pytest.raises(MismatchError, match="trained on the cache"):
        run(LayerSource(3, layer.cache, tmp_path / "transcoder"), tmp_path / "out", "saelens")


def test_the_normalised_input_is_measured_as_the_tool_will_feed_it(layer: LayerSource, tmp_path: Path) -> None:
    (result,) = run(layer, tmp_path, "saelens", wish=Wish(source_view="ln2_normalized"))
    record = result["layers"]["3"]
    assert (record["exactness"], record["source_site"]) == ("exact up to rounding", "ln2_normalized")
    assert record["held_out"]["after"]["fvu"] == pytest.approx(record["held_out"]["before"]["fvu"], rel=1e-4)
    read = read_foreign(Path(result["folder"]), Wanted(layer=3))
    assert torch.equal(read.b_dec, load_transcoder(layer.transcoder).b_dec)


def test_every_layer_of_a_set_has_the_size_of_its_prefix(layer: LayerSource, tmp_path: Path) -> None:
    (result,) = run(layer, tmp_path, "circuit-tracer", wish=Wish(prefix=24))
    for number in range(4):
        with safe_open(Path(result["folder"]) / f"layer_{number}.safetensors", framework="pt") as file:
            assert file.get_slice("W_enc").get_shape() == [24, WIDTH]


@pytest.fixture(scope="module", params=["source", "target"])
def autoencoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, layer: LayerSource) -> Any:
    """(an autoencoder of one side of the cache, its site)"""
    folder = tmp_path_factory.mktemp("sae") / "transcoder"
    width = load_transcoder(layer.transcoder).d_source
    arrays = random_arrays(width, width, dict_size=64, seed=6)
    arrays["b_dec"] += 2
    trained = Transcoder(**arrays, rule=TopK(20), prefixes=(8, 64))
    save_transcoder(trained, folder, config={"kind": "sae", "side": request.param})
    return replace(layer, transcoder=folder), {"source": "mlp_in", "target": "mlp_out"}[request.param]


@pytest.mark.parametrize(("to", "architecture"), [("saelens", "topk"), ("saelens-jumprelu", "jumprelu")])
def test_an_autoencoder_is_exported_to_saelens_as_one(
    autoencoder: Any, tmp_path: Path, to: str, architecture: str
) -> None:
    source, site = autoencoder
    (result,) = run(source, tmp_path, to)
    config = json.loads((Path(result["folder"]) / "cfg.json").read_text())
    hook = {"mlp_in": "blocks.3.mlp.hook_in", "mlp_out": "blocks.3.hook_mlp_out"}[site]
    assert (config["architecture"], config["metadata"]["hook_name"]) == (architecture, hook)
    assert "hook_name_out" not in config["metadata"]
    assert "d_out" not in config
    record = result["layers"]["3"]
    assert (record["source_site"], record["target_site"]) == (site, site)
    if to == "saelens":
        assert record["exactness"] == "exact"
        assert record["held_out"]["after"] == record["held_out"]["before"]
        read = read_foreign(Path(result["folder"]), Wanted(layer=3))
        for name, array in load_transcoder(source.transcoder).arrays().items():
            assert torch.equal(array, read.arrays()[name])


def test_a_format_without_autoencoders_says_so(autoencoder: Any, tmp_path: Path) -> None:
    source, site = autoencoder
    for to in ("circuit-tracer", "gemma-scope"):
        with pytest.raises(UsageError, match="is for transcoders"):
            run(source, tmp_path / "out", to)
    with pytest.raises(UsageError, match="cannot read ln2_normalized"):
        run(source, tmp_path / "out", "saelens", wish=Wish(source_view="ln2_normalized"))
    if site == "mlp_in":  # of a module sparsify knows the output alone
        with pytest.raises(UsageError, match="what a module writes"):
            run(source, tmp_path / "out", "sparsify")
    else:
        (result,) = run(source, tmp_path / "out", "sparsify")
        assert Path(result["folder"]).name.endswith(".3.mlp")
    assert site == "mlp_out" or not (tmp_path / "out").exists()
