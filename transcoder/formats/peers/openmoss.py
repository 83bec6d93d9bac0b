"""OpenMOSS's Language-Model-SAEs, now Llamascopium: a configuration, and safetensors. Three versions are read.

    2024, Llama Scope    hyperparams.json  encoder.weight (dict_size, d)  encoder.bias  decoder.weight  decoder.bias
    2025                 config.json       the same, log_jumprelu_threshold, dataset_average_activation_norm.<hook>
    2.0                  config.json       W_E (d, dict_size)  b_E  W_D  b_D  dataset_average_activation_norm.<hook>,
                                           activation_function.log_jumprelu_threshold

Read at commits 5e5527b7, b6471ee4 and 95281ac7 of their repository; no code of theirs is here. With
s = sqrt(d) / (mean norm of the data set) of either hook, 1 in ``norm_activation: inference``, and n_f = ||W_D[f]||:

    pre = s_in x W_E + b_E        y = (features W_D + b_D) / s_out        features = pre where it is selected

``sparsity_include_decoder_norm`` selects by n_f pre_f in place of pre_f. The first version folds the scales before it
selects: pre and n_f are those of W_D s_in / s_out and b_E / s_in, and ``jump_relu_threshold`` is compared with those;
its top-k with such a threshold is JumpReLU. All of it is one affine map and a selection, and is folded in float64.
"""

import re
from collections.abc import Mapping
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import DamagedError, MismatchError, UsageError
from common.sealed.tensors import FLOATS, check_arrays, read_metadata
from transcoder.formats.files.safe import names_in, read_json, read_tensors
from transcoder.formats.wanted import (
    Described,
    Wanted,
    dictionary_of,
    refuse_nonlinear,
    sites_of_hooks,
    thresholds_of,
    top_k_of,
)
from transcoder.rules.relu import ReLU
from transcoder.rules.rule import Rule, is_count
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

_FIRST = "hyperparams.json"
_LATER = "config.json"
_KEY = "hook_point_in"
_WEIGHTS = ("sae_weights.safetensors", "checkpoints/pruned.safetensors", "checkpoints/final.safetensors")
"""In the order in which their loader looks for them."""
_NORMS = "dataset_average_activation_norm"
_NAMES = {
    "W_enc": "W_E",
    "b_enc": "b_E",
    "W_dec": "W_D",
    "b_dec": "b_D",
    "thresholds": "activation_function.log_jumprelu_threshold",
}
_NAMES_BEFORE = {
    "W_enc": "encoder.weight",
    "b_enc": "encoder.bias",
    "W_dec": "decoder.weight",
    "b_dec": "decoder.bias",
    "thresholds": "log_jumprelu_threshold",
}
_UNIT = 1e-3
"""A decoder row with a length this near to 1 counts as a unit row: bfloat16 is not more exact."""


def find_openmoss(path: Path, _wanted: Wanted) -> Path | None:
    """The folder that ``path`` means, where it is of this layout."""
    folder = path if path.is_dir() else path.parent
    above = folder.parent if folder.name == "checkpoints" else folder
    return above if _config(above) else None


def read_openmoss(folder: Path, wanted: Wanted) -> Transcoder:
    """An autoencoder or a transcoder that selects by ReLU, top-k or JumpReLU.

    Raises MismatchError for another kind, for rows that are scaled one by one, and for a file of which two versions
    made two things; UsageError where there are no weights in safetensors.
    """
    path = _config(folder)
    assert path is not None, "it was found before"
    config = read_json(path)
    _refuse(config, path)
    weights = _weights(folder)
    hooks = (str(config[_KEY]), str(config.get("hook_point_out") or config[_KEY]))
    source, target = sites_of_hooks(*hooks, path=path, wanted=wanted)
    stored, log_thresholds = _stored(config, weights)
    scales = _scales(config, hooks, weights, path)
    first = path.name == _FIRST
    by_norm = config.get("sparsity_include_decoder_norm", True)
    norms = stored["W_dec"].double().norm(dim=1) if by_norm else torch.ones(len(stored["W_dec"]), dtype=torch.float64)
    _refuse_ambiguous(norms, weights)
    if first:
        rule = _first_rule(config, len(norms), path)
        folded = _folded_first(stored, scales)
        units = norms * scales[0] / scales[1] if by_norm else norms
    else:
        rule = _later_rule(config, log_thresholds, norms, path)
        folded = _folded_later(stored, scales)
        # A threshold moves by the norm where features keep their size; top-k has none that could.
        units = norms if isinstance(rule, TopK) else torch.ones_like(norms)
    subtracts = config.get("apply_decoder_bias_to_pre_encoder", first) and config.get("use_decoder_bias", True)
    return dictionary_of(
        _with_units(folded, units),
        Described(folder, source, target, folder.name),
        rule=rule,
        wanted=wanted,
        # Of the row as it comes: the first version takes its scaled bias from that, the others theirs after scaling it.
        subtracted=(stored["b_dec"].double() / scales[1 if first else 0]).float() if subtracts else None,
    )


def _refuse(config: Mapping[str, Any], path: Path) -> None:
    """Raises MismatchError for what is not an affine map and a selection, or not known."""
    kind = config.get("sae_type", "sae")
    if kind != "sae":
        raise MismatchError(f"The file holds a {kind!r} of OpenMOSS's; its only 'sae' is read.", where=path)
    if config.get("use_glu_encoder"):
        raise refuse_nonlinear("The encoder is gated (use_glu_encoder)", path=path)
    scaling = config.get("norm_activation")
    if scaling is None:
        what = "The configuration does not say norm_activation, whose default changed with OpenMOSS's versions."
        raise MismatchError(what, where=path, remedy="Add norm_activation with the value that the training used.")
    if scaling not in ("dataset-wise", "inference", "none"):
        raise refuse_nonlinear(f"Rows are scaled by themselves or their batch (norm_activation {scaling})", path=path)
    activation = config.get("act_fn")
    if activation not in ("relu", "topk", "jumprelu"):
        what = f"The file's act_fn is {activation!r}; only relu, topk and jumprelu are read."
        raise MismatchError(what, where=path, remedy="Convert it to jumprelu with OpenMOSS's own tool.")


def _config(folder: Path) -> Path | None:
    for file in (folder / name for name in (_FIRST, _LATER)):
        if file.is_file() and _KEY in _keys(file):
            return file
    return None


def _weights(folder: Path) -> Path:
    """Raises UsageError where there are none in safetensors."""
    for file in (folder / name for name in _WEIGHTS):
        if file.is_file():
            return file
    what = f"There are no weights beside this configuration; {', '.join(_WEIGHTS)} are read."
    raise UsageError(what, where=folder, remedy="Write them with OpenMOSS's own save_pretrained.")


def _stored(config: Mapping[str, Any], weights: Path) -> tuple[dict[str, Tensor], Tensor | None]:
    """The file's arrays under our names, in the field's orientation, and the logarithms of thresholds where there are.

    Raises DamagedError for shapes that disagree with each other or with the configuration's ``d_model``.
    """
    named = _NAMES if "W_E" in names_in(weights) else _NAMES_BEFORE
    thresholds = named["thresholds"]
    left_out = {"thresholds"} if config.get("use_decoder_bias", True) else {"thresholds", "b_dec"}
    wanted = {own_name: name for own_name, name in named.items() if own_name not in left_out}
    found = read_tensors(weights, names=set(wanted.values()), optional=frozenset({thresholds}))
    arrays = {own_name: found[name] for own_name, name in wanted.items()}
    if named is _NAMES_BEFORE:
        arrays |= {own_name: arrays[own_name].mT for own_name in ("W_enc", "W_dec")}
    width = config.get("d_model")
    dict_size = arrays["b_enc"].numel()
    if not is_count(width):
        raise DamagedError(f"d_model is {width!r}, which is not a width.", where=weights)
    width = int(str(width))
    arrays.setdefault("b_dec", torch.zeros(width))
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (width, dict_size),
        "b_enc": (dict_size,),
        "W_dec": (dict_size, width),
        "b_dec": (width,),
    }
    check_arrays(arrays, shapes, location=weights, error=DamagedError, dtypes=FLOATS)
    return arrays, found.get(thresholds)


def _scales(config: Mapping[str, Any], hooks: tuple[str, str], weights: Path, path: Path) -> tuple[float, float]:
    """What source and target are multiplied by. Raises DamagedError where a norm is missing, or is none."""
    if config["norm_activation"] != "dataset-wise":
        return 1.0, 1.0
    if path.name == _FIRST:
        found = config.get(_NORMS)
        norms = [found.get(end) if isinstance(found, dict) else None for end in ("in", "out")]
    else:
        names = [f"{_NORMS}.{hook}" for hook in hooks]
        tensors = read_tensors(weights, names=set(names))
        norms = [float(tensors[name]) if tensors[name].numel() == 1 else None for name in names]
    source, target = (_scale(norm, config["d_model"], path) for norm in norms)
    return source, target


def _scale(norm: object, width: int, path: Path) -> float:
    if not isinstance(norm, int | float) or not isfinite(norm) or norm <= 0:
        raise DamagedError(f"{_NORMS} is {norm!r}, which is not a positive number.", where=path)
    return sqrt(width) / norm


def _refuse_ambiguous(norms: Tensor, weights: Path) -> None:
    """Raises MismatchError where the norms count and the version that wrote the file is one of two that used them
    differently: of July to September 2025 features are n_f pre_f themselves, and all of that year are called 0.1.0."""
    version = read_metadata(weights).get("version", "")
    is_latest = bool(re.match(r"[2-9]|[1-9]\d", version))
    if "W_E" in names_in(weights) and not is_latest and bool(((norms - 1).abs() > _UNIT).any()):
        what = (
            f"The file is of version {version or 'unknown'}, and its decoder rows are not unit vectors: "
            "OpenMOSS's code of 2025 first multiplied features by the norms of these rows, and later did not."
        )
        remedy = "Write it with transform_to_unit_decoder_norm() in the code that trained it, or with Llamascopium 2."
        raise MismatchError(what, where=weights, remedy=remedy)


def _first_rule(config: Mapping[str, Any], dict_size: int, path: Path) -> Rule:
    threshold = config.get("jump_relu_threshold", 0.0)
    if not isinstance(threshold, int | float) or not isfinite(threshold) or threshold < 0:
        raise DamagedError(f"jump_relu_threshold is {threshold!r}, which is not a threshold.", where=path)
    if config["act_fn"] == "jumprelu" or (config["act_fn"] == "topk" and threshold > 0):
        return JumpReLU(torch.full((dict_size,), float(threshold)))
    if config["act_fn"] == "topk":
        return TopK(top_k_of(config.get("top_k"), dict_size, path=path))
    return ReLU()


def _later_rule(config: Mapping[str, Any], log_thresholds: Tensor | None, norms: Tensor, path: Path) -> Rule:
    if config["act_fn"] == "topk":
        return TopK(top_k_of(config.get("top_k"), len(norms), path=path))
    if config["act_fn"] == "relu":
        return ReLU()
    if log_thresholds is None:
        raise DamagedError("The file selects by thresholds, but has none (log_jumprelu_threshold).", where=path)
    thresholds = thresholds_of(log_thresholds, len(norms), path=path).double().exp() / norms
    # A row of zeros writes nothing: with an unlimited threshold its feature is never selected.
    return JumpReLU(thresholds.clamp_max(torch.finfo(torch.float32).max).float())


def _folded_first(stored: Mapping[str, Tensor], scales: tuple[float, float]) -> dict[str, Tensor]:
    """In float64: features are of the size that they have where nothing is scaled."""
    arrays = {name: array.double() for name, array in stored.items()}
    return {
        "W_enc": arrays["W_enc"],
        "b_enc": arrays["b_enc"] / scales[0],
        "W_dec": arrays["W_dec"] * (scales[0] / scales[1]),
        "b_dec": arrays["b_dec"] / scales[1],
    }


def _folded_later(stored: Mapping[str, Tensor], scales: tuple[float, float]) -> dict[str, Tensor]:
    """In float64: features are of the size that they have where the source is scaled."""
    arrays = {name: array.double() for name, array in stored.items()}
    return {
        "W_enc": arrays["W_enc"] * scales[0],
        "b_enc": arrays["b_enc"],
        "W_dec": arrays["W_dec"] / scales[1],
        "b_dec": arrays["b_dec"] / scales[1],
    }


def _with_units(arrays: Mapping[str, Tensor], units: Tensor) -> dict[str, Tensor]:
    """Every feature multiplied by its unit, and its decoder row divided by it; with unit 0 it writes nothing anyway."""
    return {
        "W_enc": (arrays["W_enc"] * units).float(),
        "b_enc": (arrays["b_enc"] * units).float(),
        "W_dec": (arrays["W_dec"] / torch.where(units > 0, units, 1.0)[:, None]).float(),
        "b_dec": arrays["b_dec"].float(),
    }


def _keys(file: Path) -> set[str]:
    """The keys of a JSON object; empty for any other file, which may be of another layout."""
    try:
        return set(read_json(file))
    except DamagedError:
        return set()
