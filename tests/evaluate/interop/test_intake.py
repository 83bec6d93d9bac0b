"""Another tool's dictionary becomes a run of ours."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import MismatchError, UsageError
from common.progress import Silent
from evaluate.interop.intake import ImportRequest, import_layer
from evaluate.reference import IMPORTED
from tests.helpers.evaluation import evaluate
from train.record.verify import verify_run
from transcoder.formats.about import About
from transcoder.formats.native import load_transcoder
from transcoder.formats.peers.saelens import write_saelens
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays

WIDTH = 12
ABOUT = About("toy", 3, "mlp_in", "mlp_out", record={"prefixes": [8, 24, 64]})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, write_toy_cache: Callable[..., Path]) -> Path:
    return write_toy_cache(tmp_path_factory.mktemp("run") / "cache", held_out_rows=400, d_target=WIDTH)


def dictionary(seed: int = 5) -> Transcoder:
    arrays = random_arrays(WIDTH, WIDTH, dict_size=64, seed=seed)
    arrays["b_dec"] += 2
    return Transcoder(**arrays, rule=TopK(20), prefixes=(8, 24, 64))


def take(folder: Path, cache: Path, **options: Any) -> dict[str, Any]:
    more = {name: options.pop(name) for name in ("dry_run",) if name in options}
    request = ImportRequest(folder, options.pop("layer", 3), folder.parent / "taken", cache, **options)
    return import_layer(request, device="cpu", progress=Silent(), **more)


def evaluated(folder: Path, cache: Path) -> dict[str, Any]:
    return evaluate(cache, folder / "taken", folder / "report")


def test_an_imported_dictionary_is_evaluated_and_verified_like_ours(tmp_path: Path, cache: Path) -> None:
    write_saelens(tmp_path / "x", dictionary(), ABOUT)
    config = take(tmp_path / "x", cache)
    assert config[IMPORTED]["format"] == "saelens"
    assert set(config[IMPORTED]["files"]) == {"cfg.json", "sae_weights.safetensors"}
    assert config[IMPORTED]["measured"]["l0"] == pytest.approx(20, abs=1)
    taken = load_transcoder(tmp_path / "taken")
    assert taken.prefixes == (8, 24, 64)
    for name, array in dictionary().arrays().items():
        assert torch.equal(array, taken.arrays()[name])
    assert verify_run(tmp_path / "taken") == []
    metrics = evaluated(tmp_path, cache)
    assert metrics["fvu_per_prefix"][-1] == pytest.approx(config[IMPORTED]["measured"]["fvu"], rel=1e-5)


def test_the_normalised_input_is_kept_and_served(tmp_path: Path, cache: Path) -> None:
    write_saelens(tmp_path / "x", dictionary(), replace(ABOUT, source_site="ln2_normalized"))
    config = take(tmp_path / "x", cache)
    assert (config["source_site"], config["source_view"]) == ("ln2_normalized", "ln2_normalized")
    assert len(config["gain"]) == WIDTH


def test_an_autoencoder_reads_its_site_of_the_cache(tmp_path: Path, cache: Path) -> None:
    write_saelens(tmp_path / "x", dictionary(), replace(ABOUT, source_site="mlp_out"))
    config = take(tmp_path / "x", cache)
    assert (config["kind"], config["side"]) == ("sae", "target")
    metrics = evaluated(tmp_path, cache)
    assert metrics["transcoder"]["kind"] == "sae"
    assert metrics["fvu_per_prefix"][-1] == pytest.approx(config[IMPORTED]["measured"]["fvu"], rel=1e-5)
    write_saelens(tmp_path / "y", dictionary(), replace(ABOUT, source_site="resid_post", target_site="resid_post"))
    with pytest.raises(MismatchError, match="resid_post"):
        take(tmp_path / "y", cache, fresh=True)


def test_without_a_cache_nothing_is_measured(tmp_path: Path) -> None:
    write_saelens(tmp_path / "x", dictionary(), ABOUT)
    config = take(tmp_path / "x", tmp_path / "none")
    assert config[IMPORTED]["measured"] is None
    assert config["model"] == "toy"


def test_a_dry_run_writes_nothing(tmp_path: Path, cache: Path) -> None:
    write_saelens(tmp_path / "x", dictionary(), ABOUT)
    assert take(tmp_path / "x", cache, dry_run=True)["dict_size"] == 64
    assert not (tmp_path / "taken").exists()


def test_an_existing_run_is_kept(tmp_path: Path, cache: Path) -> None:
    write_saelens(tmp_path / "x", dictionary(), ABOUT)
    take(tmp_path / "x", cache)
    with pytest.raises(UsageError, match="has an imported transcoder"):
        take(tmp_path / "x", cache)
    write_saelens(tmp_path / "x", dictionary(seed=6), ABOUT)
    take(tmp_path / "x", cache, fresh=True)
    assert torch.equal(load_transcoder(tmp_path / "taken").W_dec, dictionary(seed=6).W_dec)
    (tmp_path / "taken" / "checkpoints").mkdir()
    with pytest.raises(UsageError, match="has a training run"):
        take(tmp_path / "x", cache, fresh=True)


def test_a_broken_import_is_begun_again(tmp_path: Path, cache: Path) -> None:
    write_saelens(tmp_path / "x", dictionary(), ABOUT)
    take(tmp_path / "x", cache)
    (tmp_path / "taken" / "config.json").unlink()
    take(tmp_path / "x", cache)
    assert json.loads((tmp_path / "taken" / "config.json").read_text())["dict_size"] == 64


def test_widths_and_layer_are_checked(tmp_path: Path, cache: Path) -> None:
    small = Transcoder(**random_arrays(6, 6, dict_size=64), rule=JumpReLU(torch.zeros(64)))
    write_saelens(tmp_path / "x", small, ABOUT)
    with pytest.raises(MismatchError, match="maps 6 dimensions to 6"):
        take(tmp_path / "x", cache)
    with pytest.raises(MismatchError, match="not of layer 4"):
        take(tmp_path / "x", cache, layer=4)


def test_other_sites_are_refused_when_it_is_evaluated(tmp_path: Path, cache: Path) -> None:
    write_saelens(tmp_path / "x", dictionary(), replace(ABOUT, source_site="resid_mid"))
    take(tmp_path / "x", tmp_path / "none")
    with pytest.raises(MismatchError, match="resid_mid"):
        evaluated(tmp_path, cache)
