"""SAELens's layout: cfg.json + sae_weights.safetensors.

    W_enc (d_source, dict_size)  b_enc (dict_size,)  W_dec (dict_size, d_target)  b_dec (d_target,)
    threshold (dict_size,)       in the jumprelu architectures
    W_skip (d_target, d_source)  in the skip architectures

SAELens has no top-k transcoder. Its ``topk`` autoencoder is one where source and target have one width and
``apply_b_dec_to_input`` is false; without that flag SAELens loads it and computes something else. SAELens reads a
``transcoder`` with a ``k`` as a plain ReLU, so none is ever written. ``rescale_acts_by_decoder_norm`` is written false:
true changes the last bits, and gives NaN for a decoder row of zeros, as in a prefix.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import disk
from common.errors import DamagedError, MismatchError
from common.sealed.tensors import write_tensors
from transcoder.formats.about import About, words_in
from transcoder.formats.files.safe import read_json, read_tensors
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
from transcoder.rules.relu import ReLU
from transcoder.rules.rule import Rule
from transcoder.rules.threshold import JumpReLU
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder

_FILE = "sae_weights.safetensors"
_CONFIG = "cfg.json"

_RELU = {"standard", "transcoder", "skip_transcoder"}
_JUMPRELU = {"jumprelu", "jumprelu_transcoder", "jumprelu_skip_transcoder"}
_READ = sorted(_RELU | _JUMPRELU | {"topk"})


def find_saelens(path: Path, _wanted: Wanted) -> Path | None:
    """The folder that ``path`` means, where it is of this layout."""
    if path.name in (_FILE, _CONFIG) and path.with_name(_FILE).is_file():
        return path.parent
    return path if path.name == _FILE or (path / _FILE).is_file() else None


def read_saelens(folder: Path, wanted: Wanted) -> Transcoder:
    """An autoencoder or a transcoder that selects by ReLU, top-k or JumpReLU. Raises MismatchError for another."""
    config = read_json(folder / _CONFIG)
    architecture = config.get("architecture", "standard")
    if architecture not in _READ:
        what = f"The file holds a {architecture!r}; {', '.join(_READ)} are read."
        raise MismatchError(what, where=folder)
    _refuse_scaling(config, folder)
    names = NAMES | ({"threshold"} if architecture in _JUMPRELU else set())
    optional = frozenset({"W_skip", "scaling_factor"})
    tensors = read_tensors(folder / _FILE, names=names, optional=optional)
    if not bool((tensors.pop("scaling_factor", torch.ones(1)) == 1).all()):
        raise refuse_nonlinear("The file scales features by a factor of their own", path=folder)
    if "W_skip" in tensors:
        tensors["W_skip"] = tensors["W_skip"].T

    metadata = config.get("metadata")
    fields: Mapping[str, Any] = metadata if isinstance(metadata, dict) else config
    model = fields.get("model_name")
    transcodes = str(architecture).endswith("transcoder")
    target = fields.get("hook_name_out") or (fields.get("hook_name") if not transcodes else "nothing")
    source, reconstructed = sites_of_hooks(fields.get("hook_name"), target, path=folder, wanted=wanted, model=model)
    _fold_norms(config, tensors, folder)
    rule = _rule(config, str(architecture), tensors, folder)
    subtracts = bool(config.get("apply_b_dec_to_input", not transcodes))
    return dictionary_of(
        tensors,
        Described(folder, source, reconstructed, folder.name, model=model, own_words=words_in(metadata)),
        rule=rule,
        wanted=wanted,
        subtracted=tensors["b_dec"] if subtracts else None,
    )


def write_saelens(folder: Path, transcoder: Transcoder, about: About) -> None:
    """Both files. A top-k transcoder becomes a ``topk``; one of thresholds a ``jumprelu_transcoder`` (``jumprelu``
    where it reconstructs what it reads)."""
    arrays = {name: array.detach().float() for name, array in transcoder.arrays().items()}
    arrays["W_enc"] = arrays["W_enc"].T
    config: dict[str, Any] = {"architecture": _architecture(transcoder, about)}
    if isinstance(transcoder.rule, TopK):
        config |= {"k": transcoder.top_k, "rescale_acts_by_decoder_norm": False}
    elif isinstance(transcoder.rule, JumpReLU):
        arrays["threshold"] = transcoder.rule.threshold.float()
    if "W_skip" in arrays:
        arrays["W_skip"] = arrays["W_skip"].T
    config |= {
        "d_in": transcoder.d_source,
        "d_out": transcoder.d_target,
        "d_sae": transcoder.dict_size,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": _metadata(about),
    }
    if not config["architecture"].endswith("transcoder"):
        del config["d_out"]  # a topk and a jumprelu know one width
    write_tensors(folder / _FILE, arrays, metadata=about.header())
    disk.write_file(folder / _CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def _metadata(about: About) -> dict[str, Any]:
    """``sae_lens_version`` at the least 6: below it SAELens passes over all the rest."""
    named = {"hook_name": about.source_hook, "hook_name_out": about.target_hook, "hook_layer": about.layer}
    if about.is_autoencoder:
        del named["hook_name_out"]
    return {
        "sae_lens_version": "6.0.0",
        "sae_lens_training_version": None,
        "model_name": about.model_name,
        **named,
        "hook_head_index": None,
        # The target is another tensor once TransformerLens has centred what is written to the residual.
        "model_from_pretrained_kwargs": {"fold_ln": False, "center_writing_weights": False, "center_unembed": False},
        "prepend_bos": about.begins_with_bos,
        "context_size": about.context,
        "dataset_path": about.dataset,
        "neuronpedia_id": None,
        **about.words(),
    }


def _architecture(transcoder: Transcoder, about: About) -> str:
    if isinstance(transcoder.rule, TopK):
        assert transcoder.W_skip is None, "a topk has no skip"
        assert transcoder.d_source == transcoder.d_target, "a topk has one width"
        return "topk"
    kind = "jumprelu" if isinstance(transcoder.rule, JumpReLU) else ""
    if about.is_autoencoder:
        assert transcoder.W_skip is None, "an autoencoder has no skip"
        return kind or "standard"
    skip = "skip" if transcoder.W_skip is not None else ""
    return "_".join(filter(None, (kind, skip, "transcoder")))


def _refuse_scaling(config: Mapping[str, Any], folder: Path) -> None:
    """Raises MismatchError for what scales each row by itself, or by a number that the file does not hold."""
    scaling = config.get("normalize_activations", "none")
    if scaling not in ("none", None):
        raise refuse_nonlinear(f"The input is scaled by {scaling!r} before it is encoded", path=folder)
    if config.get("finetuning_scaling_factor"):
        raise refuse_nonlinear("The file scales features by a factor of their own", path=folder)
    if config.get("reshape_activations", "none") not in ("none", None):
        raise refuse_nonlinear("The input is reshaped from several heads", path=folder)


def _rule(config: Mapping[str, Any], architecture: str, tensors: dict[str, Tensor], folder: Path) -> Rule:
    dict_size = tensors["b_enc"].numel()
    if architecture in _JUMPRELU:
        return JumpReLU(thresholds_of(tensors.pop("threshold"), dict_size, path=folder))
    named = config.get("activation_fn_str", config.get("activation_fn", "relu"))  # before SAELens 6
    if architecture == "topk" or named == "topk":
        options = config.get("activation_fn_kwargs")
        k = config.get("k", options.get("k") if isinstance(options, dict) else None)
        return TopK(top_k_of(k, dict_size, path=folder))
    if named != "relu":
        raise MismatchError(f"The file's activation is {named!r}; relu and topk are read.", where=folder)
    return ReLU()


def _fold_norms(config: Mapping[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    """Where features are selected by pre-activation times the decoder row's norm: the norm moves into the encoder."""
    if not config.get("rescale_acts_by_decoder_norm"):
        return
    if tensors["W_dec"].ndim != 2 or tensors["W_enc"].ndim != 2 or len(tensors["W_dec"]) != tensors["b_enc"].numel():
        raise DamagedError("The numbers of decoder rows and encoder features differ.", where=folder)
    norms = tensors["W_dec"].double().norm(dim=1)
    if not bool((norms > 0).all()):
        what = "The file divides by the norms of its decoder rows, and one row is 0: in SAELens the result is NaN."
        raise DamagedError(what, where=folder, remedy="Set rescale_acts_by_decoder_norm to false in cfg.json.")
    tensors["W_enc"] = (tensors["W_enc"].double() * norms).float()
    tensors["b_enc"] = (tensors["b_enc"].double() * norms).float()
    tensors["W_dec"] = (tensors["W_dec"].double() / norms[:, None]).float()
