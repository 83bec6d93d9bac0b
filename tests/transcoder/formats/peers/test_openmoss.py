"""OpenMOSS's dictionaries, against the definitions of their versions in float64; and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from common.errors import DamagedError, MismatchError, NestcoderError, UsageError
from transcoder.formats.foreign import Wanted, files_of, read_foreign, read_named
from transcoder.formats.peers.openmoss import find_openmoss

WIDTH, DICT_SIZE, TOP_K = 8, 24, 5
HOOKS = ("blocks.8.ln2.hook_normalized", "blocks.8.hook_mlp_out")
NORMS = (3.0, 0.7)
THRESHOLD = 0.2
Numbers = dict[str, torch.Tensor]


def numbers(*, zero_row: bool = False) -> Numbers:
    drawn = torch.Generator().manual_seed(3)
    shapes = {"W_E": (WIDTH, DICT_SIZE), "b_E": (DICT_SIZE,), "W_D": (DICT_SIZE, WIDTH), "b_D": (WIDTH,)}
    made = {name: torch.randn(shape, generator=drawn) for name, shape in shapes.items()}
    made["log"] = torch.randn(DICT_SIZE, generator=drawn) - 1
    if zero_row:
        made["W_D"][7] = 0
    return made


def configuration(**more: Any) -> dict[str, Any]:
    return {
        "hook_point_in": HOOKS[0],
        "hook_point_out": HOOKS[1],
        "d_model": WIDTH,
        "act_fn": "jumprelu",
        "norm_activation": "dataset-wise",
        "sparsity_include_decoder_norm": True,
        "use_decoder_bias": True,
        "top_k": TOP_K,
        **more,
    }


def write_first(folder: Path, made: Numbers, **more: Any) -> dict[str, Any]:
    """The format of 2024: arrays oriented as in linear layers, norms in the configuration, one threshold."""
    config = configuration(
        dataset_average_activation_norm={"in": NORMS[0], "out": NORMS[1]},
        jump_relu_threshold=THRESHOLD,
        apply_decoder_bias_to_pre_encoder=False,
        **more,
    )
    (folder / "checkpoints").mkdir()
    (folder / "hyperparams.json").write_text(json.dumps(config))
    arrays = {
        "encoder.weight": made["W_E"].T.contiguous(),
        "encoder.bias": made["b_E"],
        "decoder.weight": made["W_D"].T.contiguous(),
        "decoder.bias": made["b_D"],
    }
    if not config["use_decoder_bias"]:
        del arrays["decoder.bias"]
    save_file(arrays, folder / "checkpoints" / "final.safetensors", {"version": "0.1.0"})
    return config


def write_later(
    folder: Path, made: Numbers, *, version: str = "2.0.0b34", linear: bool = False, **more: Any
) -> dict[str, Any]:
    """The formats of 2025 (``linear``) and now: norms and thresholds are tensors."""
    config = configuration(sae_type="sae", **more)
    if linear:
        arrays = {
            "encoder.weight": made["W_E"].T.contiguous(),
            "encoder.bias": made["b_E"],
            "decoder.weight": made["W_D"].T.contiguous(),
            "decoder.bias": made["b_D"],
            "log_jumprelu_threshold": made["log"],
        }
    else:
        arrays = {name: made[name] for name in ("W_E", "b_E", "W_D", "b_D")}
        arrays["activation_function.log_jumprelu_threshold"] = made["log"]
    norms = zip(HOOKS, NORMS, strict=True)
    arrays |= {f"dataset_average_activation_norm.{hook}": torch.tensor(norm) for hook, norm in norms}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(arrays, folder / "sae_weights.safetensors", {"version": version})
    return config


def selected(pre: torch.Tensor, score: torch.Tensor, config: Mapping[str, Any], threshold: Any) -> torch.Tensor:
    if config["act_fn"] == "topk":
        kept = torch.zeros_like(score).scatter(1, score.topk(TOP_K, dim=1).indices, 1.0)
        return pre * kept * (pre > 0)
    return pre * (score > (threshold if config["act_fn"] == "jumprelu" else 0))


def first_definition(made: Numbers, config: Mapping[str, Any], rows: torch.Tensor) -> torch.Tensor:
    """Their loader of 2024 folds the scales, then the norms; then it selects. The reconstruction."""
    W_E, b_E, W_D, b_D = (made[name].double() for name in ("W_E", "b_E", "W_D", "b_D"))
    scale_in, scale_out = WIDTH**0.5 / NORMS[0], WIDTH**0.5 / NORMS[1]
    b_E, b_D, W_D = b_E / scale_in, b_D / scale_out, W_D * scale_in / scale_out
    norms = W_D.norm(dim=1) if config["sparsity_include_decoder_norm"] else torch.ones(DICT_SIZE)
    read = rows - b_D if config["apply_decoder_bias_to_pre_encoder"] else rows
    pre = (read @ W_E + b_E) * norms
    act = "jumprelu" if config["act_fn"] == "topk" and config["jump_relu_threshold"] > 0 else config["act_fn"]
    features = selected(pre, pre, {**config, "act_fn": act}, config["jump_relu_threshold"])
    return features @ (W_D / norms[:, None]) + (b_D if config["use_decoder_bias"] else 0)


def later_definition(made: Numbers, config: Mapping[str, Any], rows: torch.Tensor) -> torch.Tensor:
    """The source is scaled, the reconstruction scaled back; the norms count only in the selection."""
    W_E, b_E, W_D, b_D = (made[name].double() for name in ("W_E", "b_E", "W_D", "b_D"))
    scaled = config["norm_activation"] == "dataset-wise"
    scale_in, scale_out = (WIDTH**0.5 / norm if scaled else 1 for norm in NORMS)
    norms = W_D.norm(dim=1) if config["sparsity_include_decoder_norm"] else torch.ones(DICT_SIZE)
    read = rows * scale_in - (b_D if config.get("apply_decoder_bias_to_pre_encoder") else 0)
    pre = read @ W_E + b_E
    features = selected(pre, pre * norms, config, made["log"].double().exp())
    return (features @ W_D + b_D) / scale_out


def source() -> torch.Tensor:
    return 2 * torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(5))


def check(folder: Path, expected: torch.Tensor) -> None:
    read = read_foreign(folder, Wanted(layer=8))
    assert (read.source_view, read.config["target_site"]) == ("ln2_normalized", "mlp_out")
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(read(source()).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize(("act_fn", "threshold"), [("relu", 0.0), ("topk", 0.0), ("topk", 0.4), ("jumprelu", 0.4)])
def test_the_first_version(tmp_path: Path, act_fn: str, threshold: float, *, subtracts: bool, by_norm: bool) -> None:
    made = numbers()
    config = write_first(tmp_path, made, act_fn=act_fn, sparsity_include_decoder_norm=by_norm)
    config |= {"jump_relu_threshold": threshold, "apply_decoder_bias_to_pre_encoder": subtracts}
    (tmp_path / "hyperparams.json").write_text(json.dumps(config))
    check(tmp_path, first_definition(made, config, source().double()))


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("norm_activation", ["dataset-wise", "inference"])
@pytest.mark.parametrize("act_fn", ["relu", "topk", "jumprelu"])
def test_the_later_versions(tmp_path: Path, act_fn: str, norm_activation: str, *, by_norm: bool, linear: bool) -> None:
    made, options = numbers(), {"norm_activation": norm_activation, "sparsity_include_decoder_norm": by_norm}
    config = write_later(tmp_path, made, act_fn=act_fn, linear=linear, **options)
    check(tmp_path, later_definition(made, config, source().double()))


def test_the_version_that_subtracts_its_bias_after_scaling(tmp_path: Path) -> None:
    made = numbers()
    config = write_later(tmp_path, made, linear=True, apply_decoder_bias_to_pre_encoder=True)
    check(tmp_path, later_definition(made, config, source().double()))


def test_features_with_thresholds_have_the_size_that_the_tool_shows(tmp_path: Path) -> None:
    made = numbers()
    write_later(tmp_path, made)
    pre = source().double() * WIDTH**0.5 / NORMS[0] @ made["W_E"].double() + made["b_E"].double()
    expected = pre * (pre * made["W_D"].double().norm(dim=1) > made["log"].double().exp())
    read = read_foreign(tmp_path, Wanted(layer=8))
    torch.testing.assert_close(read.encode(source()).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("act_fn", ["topk", "jumprelu"])
def test_a_decoder_row_of_zeros_is_never_selected_by_its_norm(tmp_path: Path, act_fn: str) -> None:
    made = numbers(zero_row=True)
    config = write_later(tmp_path, made, act_fn=act_fn)
    check(tmp_path, later_definition(made, config, source().double()))
    assert not (read_foreign(tmp_path, Wanted(layer=8)).encode(source())[:, 7] > 0).any()


def test_a_dictionary_without_decoder_bias_is_read(tmp_path: Path) -> None:
    made = numbers()
    config = write_first(tmp_path, made, use_decoder_bias=False)
    check(tmp_path, first_definition(made, config, source().double()))


def test_an_autoencoder_is_read_from_its_files(tmp_path: Path) -> None:
    write_first(tmp_path, numbers(), hook_point_out=None)
    name, read = read_named(tmp_path / "checkpoints" / "final.safetensors", Wanted(layer=8))
    assert (name, read.config["source_site"], read.config["target_site"]) == (
        "openmoss",
        "ln2_normalized",
        "ln2_normalized",
    )
    files = [file.name for file in files_of("openmoss", tmp_path, Wanted(layer=8))]
    assert set(files) == {"hyperparams.json", "final.safetensors"}


REFUSED = [
    ({"norm_activation": "token-wise"}, MismatchError, "scaled by themselves"),
    ({"norm_activation": None}, MismatchError, "does not say norm_activation"),
    ({"use_glu_encoder": True}, MismatchError, "gated"),
    ({"act_fn": "batchtopk"}, MismatchError, "batchtopk"),
    ({"sae_type": "crosscoder"}, MismatchError, "crosscoder"),
    ({"d_model": 9}, DamagedError, "shape"),
    ({"d_model": "wide"}, DamagedError, "d_model"),
    ({"act_fn": "topk", "top_k": 0}, DamagedError, "k is 0"),
    ({"hook_point_in": "blocks.8.hook_mlp_in"}, UsageError, "hook_mlp_in"),
]


@pytest.mark.parametrize(("change", "error", "words"), REFUSED)
def test_what_is_no_affine_map_or_not_stated_is_refused(
    tmp_path: Path, change: dict[str, Any], error: type[NestcoderError], words: str
) -> None:
    config = write_later(tmp_path, numbers()) | change
    config = {key: value for key, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=words):
        read_foreign(tmp_path, Wanted(layer=8))


def test_a_file_that_two_versions_read_differently_is_refused(tmp_path: Path) -> None:
    made = numbers()
    write_later(tmp_path, made, version="0.1.0")
    with pytest.raises(MismatchError, match=r"version 0\.1\.0, and its decoder rows are not unit vectors"):
        read_foreign(tmp_path, Wanted(layer=8))
    made["W_D"] /= made["W_D"].norm(dim=1, keepdim=True)
    config = write_later(tmp_path, made, version="0.1.0")
    check(tmp_path, later_definition(made, config, source().double()))


@pytest.mark.parametrize("norm", [0.0, float("nan"), "wide", None])
def test_a_norm_that_cannot_scale_is_refused(tmp_path: Path, norm: object) -> None:
    config = write_first(tmp_path, numbers())
    config["dataset_average_activation_norm"] = {"in": norm, "out": 1.0}
    (tmp_path / "hyperparams.json").write_text(json.dumps(config))
    with pytest.raises(DamagedError, match="which is not a positive number"):
        read_foreign(tmp_path, Wanted(layer=8))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    write_later(tmp_path, numbers())
    (tmp_path / "sae_weights.safetensors").rename(tmp_path / "sae_weights.pt")
    with pytest.raises(UsageError, match="There are no weights beside this configuration"):
        read_foreign(tmp_path, Wanted(layer=8))


@pytest.mark.parametrize("text", ['{"architecture": "topk"}', "[]", "no json"])
def test_a_configuration_of_another_tool_is_left_to_other_readers(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert find_openmoss(tmp_path, Wanted(layer=8)) is None
    assert find_openmoss(tmp_path / "nothing", Wanted(layer=8)) is None
