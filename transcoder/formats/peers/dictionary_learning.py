"""dictionary_learning: ae.pt (a state_dict) + config.json, which names its class.

    AutoEncoderTopK          k  threshold (-1)  encoder.weight (dict_size, d)  encoder.bias  decoder.weight  b_dec
    BatchTopKSAE             the same, with a threshold that is used
    MatryoshkaBatchTopKSAE   k  threshold  group_sizes  W_enc (d, dict_size)  b_enc  W_dec  b_dec
    JumpReluAutoEncoder      W_enc  b_enc  W_dec  b_dec  threshold (dict_size,)
    AutoEncoder              encoder.weight  encoder.bias  decoder.weight  bias

``group_sizes`` are the features that each prefix adds. All classes but JumpReLU subtract ``b_dec`` from what they read,
so ours is folded: ``b_enc + b_dec @ W_enc``. Source and target have one width. MatryoshkaBatchTopKSAE is the only
format of another tool that stores prefixes.
"""

import io
import json
from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import disk
from common.errors import DamagedError, MismatchError
from transcoder.formats.about import About, words_in
from transcoder.formats.files.pickles import read_tensors_of_pickle
from transcoder.formats.files.safe import read_json
from transcoder.formats.sites import hook_of
from transcoder.formats.wanted import (
    OWN_WORDS,
    Described,
    Wanted,
    dictionary_of,
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

_FILE = "ae.pt"
_CONFIG = "config.json"
_LINEAR = {"encoder.weight", "encoder.bias", "decoder.weight"}
_PLAIN = {"W_enc", "b_enc", "W_dec", "b_dec"}
_TENSORS: dict[str, set[str]] = {
    "AutoEncoder": _LINEAR | {"bias"},
    "AutoEncoderTopK": _LINEAR | {"b_dec", "k"},
    "BatchTopKSAE": _LINEAR | {"b_dec", "k", "threshold"},
    "MatryoshkaBatchTopKSAE": _PLAIN | {"k", "threshold", "group_sizes"},
    "JumpReluAutoEncoder": _PLAIN | {"threshold"},
}


def find_dictionary_learning(path: Path, _wanted: Wanted) -> Path | None:
    """The folder that ``path`` means, where it is of this layout."""
    if path.name == _FILE and path.is_file():
        return path.parent
    return path if (path / _FILE).is_file() else None


def read_dictionary_learning(folder: Path, wanted: Wanted) -> Transcoder:
    """One of the classes above. Raises MismatchError for another."""
    config = read_json(folder / _CONFIG)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise DamagedError("config.json names no trainer.", where=folder / _CONFIG)
    kind = str(trainer.get("dict_class"))
    if kind not in _TENSORS:
        what = f"The file holds a {kind}; {', '.join(_TENSORS)} are read."
        raise MismatchError(what, where=folder)
    optional = frozenset({"threshold"} if kind == "AutoEncoderTopK" else ())
    stored = read_tensors_of_pickle(folder / _FILE, names=_TENSORS[kind], optional=optional)
    tensors = _oriented(stored)
    words = words_in(config)
    source, target = sites_of_hooks(*_hooks(trainer, words), path=folder, wanted=wanted, model=trainer.get("lm_name"))
    prefixes = _prefixes(stored["group_sizes"], folder) if "group_sizes" in stored else None
    subtracts = kind != "JumpReluAutoEncoder"
    return dictionary_of(
        tensors,
        Described(
            folder,
            source,
            target,
            folder.name,
            model=trainer.get("lm_name"),
            own_words={**words, "prefixes": prefixes} if prefixes else words,
        ),
        rule=_rule(kind, stored, folder),
        wanted=wanted,
        subtracted=tensors["b_dec"] if subtracts else None,
    )


def write_dictionary_learning(folder: Path, transcoder: Transcoder, about: About) -> None:
    """Both files: AutoEncoderTopK, JumpReluAutoEncoder, or, of batch top-k with its one threshold,
    MatryoshkaBatchTopKSAE, whose ``active_groups`` choose the prefix."""
    kind, arrays = _stored(transcoder)
    buffer = io.BytesIO()
    torch.save({name: array.detach().contiguous().clone() for name, array in arrays.items()}, buffer)
    config = {
        "trainer": {
            "dict_class": kind,
            "trainer_class": "nestcoder",
            "k": transcoder.top_k,
            "activation_dim": transcoder.d_source,
            "dict_size": transcoder.dict_size,
            "layer": about.layer,
            "lm_name": about.model,
            "submodule_name": about.source_hook,
        },
        "buffer": {"ctx_len": about.context},
        **about.words(),
    }
    hooks = {"source_hook": about.source_hook, "target_hook": about.target_hook}
    config[OWN_WORDS] = config[OWN_WORDS] | hooks
    disk.write_file(folder / _FILE, buffer.getvalue())
    disk.write_file(folder / _CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def _stored(transcoder: Transcoder) -> tuple[str, dict[str, Tensor]]:
    """The class that holds this rule, and its state_dict."""
    assert transcoder.W_skip is None, "none of them has a skip"
    assert transcoder.d_source == transcoder.d_target, "all of them have one width"
    arrays = {name: array.detach().float() for name, array in transcoder.arrays().items()}
    plain = {**arrays, "W_enc": arrays["W_enc"].T}
    rule = transcoder.rule
    if isinstance(rule, JumpReLU):
        return "JumpReluAutoEncoder", plain | {"threshold": rule.threshold.float()}
    assert isinstance(rule, TopK | BatchTopK), "no other rule has a class there"
    folded = arrays["b_enc"].double() + arrays["W_enc"].double() @ arrays["b_dec"].double()
    numbers = {"k": torch.tensor(transcoder.top_k, dtype=torch.int32)}
    if isinstance(rule, TopK):
        return "AutoEncoderTopK", {
            **numbers,
            "threshold": torch.tensor(-1.0),
            "encoder.weight": arrays["W_enc"],
            "encoder.bias": folded.float(),
            "decoder.weight": arrays["W_dec"].T,
            "b_dec": arrays["b_dec"],
        }
    assert rule.threshold is not None, "a trained batch top-k has its threshold"
    return "MatryoshkaBatchTopKSAE", {
        **plain,
        **numbers,
        "b_enc": folded.float(),
        "threshold": torch.tensor(rule.threshold),
        "group_sizes": torch.tensor([len(group) for group in transcoder.groups]),
    }


def _oriented(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The arrays by our names, in the field's orientation."""
    if "encoder.weight" not in stored:
        return {name: stored[name] for name in _PLAIN}
    arrays = (stored["encoder.weight"], stored["decoder.weight"])
    encoder, decoder = (array.mT if array.ndim == 2 else array for array in arrays)
    bias = stored["b_dec"] if "b_dec" in stored else stored["bias"]
    return {"W_enc": encoder, "b_enc": stored["encoder.bias"], "W_dec": decoder, "b_dec": bias}


def _rule(kind: str, stored: Mapping[str, Tensor], folder: Path) -> Rule:
    path = folder / _FILE
    dict_size = (stored["encoder.bias"] if "encoder.bias" in stored else stored["b_enc"]).numel()
    if kind == "JumpReluAutoEncoder":
        return JumpReLU(thresholds_of(stored["threshold"], dict_size, path=path))
    if kind == "AutoEncoder":
        return ReLU()
    top_k = top_k_of(_number(stored["k"], path), dict_size, path=path)
    if kind == "AutoEncoderTopK":
        return TopK(top_k)
    threshold = float(_number(stored["threshold"].double(), path))
    if threshold < 0:
        what = "The file's threshold was never set, so the features of a row depend on the other rows of its batch."
        raise MismatchError(what, where=path, remedy="Train it past threshold_start_step, or import a later file.")
    return BatchTopK(top_k, threshold)


def _number(tensor: Tensor, path: Path) -> int | float:
    if tensor.numel() != 1 or not bool(torch.isfinite(tensor.double()).all()):
        raise DamagedError("k or threshold is not a single number.", where=path)
    return tensor.item()


def _prefixes(group_sizes: Tensor, folder: Path) -> list[int]:
    """Cumulative, from what each group adds."""
    sizes = [int(size) for size in group_sizes.flatten().tolist()]
    ends = list(accumulate(sizes))
    if not sizes or min(sizes) < 1 or any(later <= earlier for earlier, later in pairwise(ends)):
        raise DamagedError(f"group_sizes are {sizes[:8]}; they must be 1 or more.", where=folder / _FILE)
    return ends


def _hooks(trainer: Mapping[str, Any], words: Mapping[str, Any]) -> Iterator[object]:
    """Source and target: ours where we wrote them; else the residual stream after the layer, which its trainers take.

    ``submodule_name`` is free text there: resid_post_layer_8, mlp_out_layer_8, or a hook.
    """
    if "source_hook" in words:
        yield words["source_hook"]
        yield words.get("target_hook")
        return
    name = str(trainer.get("submodule_name"))
    layer = trainer.get("layer")
    if type(layer) is int and layer >= 0:
        sites = {"resid_post": "resid_post", "mlp_out": "mlp_out", "attention_out": "attn_out", "attn_out": "attn_out"}
        found = [site for prefix, site in sites.items() if name.startswith(prefix)]
        yield hook_of(found[0], layer) if found else name  # pyright: ignore[reportArgumentType]
    else:
        yield name
    yield None
