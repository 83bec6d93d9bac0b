"""Checkpoints of two earlier programs, each a PyTorch state_dict with a config.json.

    matryoshka_transcoder    .../{config.json, sae.pt}, or .../{config.json, checkpoints/final.pt}
        W_enc (d_source, dict_size)  b_enc  W_dec (dict_size, d_target)  b_dec  threshold ()
        f = relu(source @ W_enc + b_enc), where it exceeds threshold        b_dec is not subtracted

    matryoshka_sae, BatchTopK    {config.json, sae.pt}
        W_enc (d, dict_size)  b_enc  W_dec  b_dec  threshold ()
        f = relu((source - b_dec) @ W_enc)        b_enc lies in the file and is added by Vanilla and JumpReLU alone

Numbers in config.json may be text ("[1024, 2048]"). ``input_unit_norm`` divides every row by its own deviation, which
is not an affine map: refused. The first program's training had no loss on prefixes, so its prefixes have no meaning,
and it is imported with one.
"""

import ast
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import DamagedError, MismatchError
from common.sealed.tensors import FLOATS, check_arrays
from transcoder.formats.files.pickles import read_tensors_of_pickle
from transcoder.formats.files.safe import read_json
from transcoder.formats.sites import hook_of
from transcoder.formats.wanted import (
    NAMES,
    Described,
    Wanted,
    dictionary_of,
    refuse_nonlinear,
    sites_of_hooks,
    thresholds_of,
    top_k_of,
)
from transcoder.rules.batchtopk import BatchTopK
from transcoder.rules.relu import ReLU
from transcoder.rules.rule import Rule
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

_WEIGHTS = ("sae.pt", "checkpoints/final.pt")
_CONFIG = "config.json"
_LOG_THRESHOLD = "jumprelu.log_threshold"
_KEPT_BY_OPTIMISERS = frozenset({"threshold", _LOG_THRESHOLD, "num_batches_not_active"})
_NO_PREFIX_LOSS = "its training had no loss on prefixes: it is imported with one prefix, the whole dictionary"
_ADDS_B_ENC = {"vanilla", "jumprelu"}


def find_matryoshka(path: Path, _wanted: Wanted) -> Path | None:
    """The folder that holds config.json, where ``path`` means one of this layout."""
    if path.name == "final.pt" and path.is_file():
        path = path.parent.parent
    elif path.name == "sae.pt" and path.is_file():
        path = path.parent
    return path if (path / _CONFIG).is_file() and any((path / name).is_file() for name in _WEIGHTS) else None


def read_matryoshka(folder: Path, wanted: Wanted) -> Transcoder:
    """Raises MismatchError for rows normalised one by one, UsageError for an input that may be two tensors."""
    config = {key: _number_of_text(value) for key, value in read_json(folder / _CONFIG).items()}
    if config.get("input_unit_norm") is True:
        raise refuse_nonlinear("Its training divided every row by its own deviation (input_unit_norm)", path=folder)
    weights = next(folder / name for name in _WEIGHTS if (folder / name).is_file())
    tensors = read_tensors_of_pickle(weights, names=NAMES, optional=_KEPT_BY_OPTIMISERS)
    _check_widths(tensors, config, weights)
    extra = {name: tensors.pop(name) for name in _KEPT_BY_OPTIMISERS & tensors.keys()}
    transcodes = "source_hook_point" in config
    hooks = _hooks(config, transcodes=transcodes)
    source, target = sites_of_hooks(*hooks, path=folder, wanted=wanted, model=config.get("model_name"))
    kind = str(config.get("sae_type", "matryoshka-transcoder" if transcodes else "")).lower()
    if not transcodes and kind not in _ADDS_B_ENC:
        tensors["b_enc"] = torch.zeros_like(tensors["b_enc"])
    return dictionary_of(
        tensors,
        Described(
            folder,
            source,
            target,
            folder.name,
            model=config.get("model_name"),
            own_words={"prefixes": _prefixes(config, len(tensors["b_enc"]), transcodes=transcodes)},
            notes=(_NO_PREFIX_LOSS,) if transcodes else (),
        ),
        rule=_rule(kind, config, extra, dict_size=tensors["b_enc"].numel(), path=weights),
        wanted=wanted,
        subtracted=None if transcodes else tensors["b_dec"],
    )


def _number_of_text(value: Any) -> Any:
    """The value of a text that is a number, True or False, or a list of numbers; everything else unchanged."""
    if not isinstance(value, str) or len(value) > 10_000:
        return value
    try:
        meant = ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return value
    return meant if isinstance(meant, bool | int | float | list | tuple) else value


def _check_widths(tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> None:
    """DamagedError where the arrays are not of the sizes that config.json names."""
    dict_size = config.get("dict_size")
    source = config.get("source_act_size", config.get("act_size"))
    target = config.get("target_act_size", source)
    if type(dict_size) is int and type(source) is int and type(target) is int:
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (source, dict_size),
            "b_enc": (dict_size,),
            "W_dec": (dict_size, target),
            "b_dec": (target,),
        }
        wanted = {name: tensors[name] for name in shapes}
        check_arrays(wanted, shapes, location=path, error=DamagedError, dtypes=FLOATS)


def _hooks(config: Mapping[str, Any], *, transcodes: bool) -> tuple[object, object]:
    if transcodes:
        return config.get("source_hook_point"), config.get("target_hook_point")
    hook = config.get("hook_point")
    layer = config.get("layer")
    if hook is None and type(layer) is int and config.get("site") in ("resid_pre", "resid_post", "mlp_out"):
        return hook_of(config["site"], layer), None
    return hook, None


def _prefixes(config: Mapping[str, Any], dict_size: int, *, transcodes: bool) -> list[int]:
    """Cumulative; ``group_sizes`` are what each group adds. One where none was trained, or they make no sense."""
    groups = config.get("group_sizes")
    if transcodes or not isinstance(groups, list | tuple) or not all(type(size) is int for size in groups):
        return [dict_size]
    ends = list(accumulate(groups))
    return ends if ends and ends[-1] == dict_size else [dict_size]


def _rule(kind: str, config: Mapping[str, Any], extra: Mapping[str, Tensor], *, dict_size: int, path: Path) -> Rule:
    if kind == "vanilla":
        return ReLU()
    if kind == "jumprelu":
        if _LOG_THRESHOLD not in extra:
            raise DamagedError("The file has no thresholds.", where=path)
        return JumpReLU(thresholds_of(extra[_LOG_THRESHOLD].float().exp(), dict_size, path=path))
    top_k = top_k_of(config.get("top_k"), dict_size, path=path)
    if kind == "topk":
        return TopK(top_k)
    threshold = extra.get("threshold")
    if threshold is None or threshold.numel() != 1 or not bool(torch.isfinite(threshold.double()).all()):
        what = "The file has no threshold, so the features of a row depend on the other rows of its batch."
        raise MismatchError(what, where=path)
    return BatchTopK(top_k, float(threshold))
