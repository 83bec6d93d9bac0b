"""circuit-tracer's layout: layer_L.safetensors for every layer of the model, and a config.yaml that names the input.

    W_enc (dict_size, d_source)  b_enc (dict_size,)  W_dec (dict_size, d_target)  b_dec (d_target,)
    activation_function.threshold (dict_size,)       where the activation is JumpReLU
    W_skip (d_target, d_source)                      where there is a skip

Its released version ignores ``activation: topk``, so that every positive feature fires, and so does the newest source
for a set in a local folder; therefore a top-k transcoder is written with thresholds. Every layer must be there, with
the same dictionary size: a layer without a transcoder gets features that never fire.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from common import disk
from common.errors import UsageError
from common.sealed.tensors import read_metadata, write_tensors
from transcoder.formats.about import About, words_in
from transcoder.formats.files.safe import read_tensors
from transcoder.formats.wanted import NAMES, Described, Wanted, dictionary_of, sites_of_hooks, thresholds_of, top_k_of
from transcoder.rules.relu import ReLU
from transcoder.rules.rule import Rule
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

_CONFIG = "config.yaml"
_THRESHOLD = "activation_function.threshold"


def find_circuit_tracer(path: Path, wanted: Wanted) -> Path | None:
    """The layer's file that ``path`` means, where it is of this layout."""
    if re.fullmatch(r"layer_\d+\.safetensors", path.name):
        return path
    file = path / f"layer_{wanted.layer}.safetensors"
    return file if file.is_file() else None


def read_circuit_tracer(path: Path, wanted: Wanted) -> Transcoder:
    """One layer of a set, whose activation is JumpReLU, top-k, or ReLU where it has neither thresholds nor k."""
    # Five flat keys of a YAML file: no reason to run a parser on files of unknown origin.
    config = path.parent / _CONFIG
    if not config.is_file():
        what = "There is no config.yaml beside the file to say what its encoder reads."
        raise UsageError(what, where=path.parent)
    fields = dict(re.findall(r"^(\w+): *['\"]?([^'\"#\s]*)", config.read_text(errors="replace"), re.MULTILINE))
    tensors = read_tensors(path, names=NAMES, optional=frozenset({_THRESHOLD, "W_skip"}))
    for name in {"W_enc", "W_skip"} & tensors.keys():
        tensors[name] = tensors[name].mT if tensors[name].ndim == 2 else tensors[name]
    layer = int(path.stem.removeprefix("layer_"))
    hooks = (f"blocks.{layer}.{fields.get(f'feature_{end}_hook')}" for end in ("input", "output"))
    model = fields.get("model_name")
    source, target = sites_of_hooks(*hooks, path=config, wanted=wanted, model=model)
    words = words_in(read_metadata(path))
    return dictionary_of(
        tensors,
        Described(path, source, target, path.stem, model=model, own_words=words),
        rule=_rule(tensors, fields, path),
        wanted=wanted,
    )


def write_circuit_tracer(folder: Path, transcoder: Transcoder, about: About) -> None:
    """The file of one layer."""
    assert isinstance(transcoder.rule, JumpReLU), "a set has thresholds"
    arrays = {name: array.detach().float() for name, array in transcoder.arrays().items()}
    arrays[_THRESHOLD] = transcoder.rule.threshold.float()
    if "W_skip" in arrays:
        arrays["W_skip"] = arrays["W_skip"].T
    write_tensors(folder / f"layer_{about.layer}.safetensors", arrays, metadata=about.header())


def frame_circuit_tracer(folder: Path, abouts: Sequence[About], like: Transcoder) -> list[int]:
    """The layers that are missing, as features that never fire, and config.yaml; the numbers of those layers.

    ``like`` is one of the transcoders: it has the size of all, and a skip if they have one.
    """
    first = abouts[0]
    there = {about.layer for about in abouts}
    missing = [layer for layer in range(first.layers_of_model or max(there) + 1) if layer not in there]
    for layer in missing:
        metadata = {"nestcoder": '{"never_fires": true}'}
        write_tensors(folder / f"layer_{layer}.safetensors", _silent(like), metadata=metadata)
    lines = [
        f"model_name: {first.model}",
        "model_kind: transcoder_set",
        f"feature_input_hook: {_local(first.source_hook)}",
        f"feature_output_hook: {_local(first.target_hook)}",
        f"scan: nestcoder/{first.model_name}",
        "activation: jumprelu",
    ]
    disk.write_file(folder / _CONFIG, ("\n".join(lines) + "\n").encode())
    return missing


def _local(hook: str) -> str:
    """A hook without ``blocks.8.``: the set names it once for all layers."""
    return hook.split(".", 2)[2]


def _silent(like: Transcoder) -> Mapping[str, Tensor]:
    """Arrays of zeros whose thresholds no pre-activation exceeds."""
    zeros = {name: torch.zeros_like(array, dtype=torch.float32) for name, array in like.arrays().items()}
    if "W_skip" in zeros:
        zeros["W_skip"] = zeros["W_skip"].T
    return zeros | {_THRESHOLD: torch.ones(like.dict_size)}


def _rule(tensors: dict[str, Tensor], fields: Mapping[str, str], path: Path) -> Rule:
    dict_size = tensors["b_enc"].numel()
    threshold = tensors.pop(_THRESHOLD, None)
    if fields.get("activation") == "topk":
        k = fields.get("k", "")
        return TopK(top_k_of(int(k) if k.isdecimal() else None, dict_size, path=path.parent / _CONFIG))
    return ReLU() if threshold is None else JumpReLU(thresholds_of(threshold, dict_size, path=path))
