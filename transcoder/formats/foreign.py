"""Other tools' transcoders as dictionaries: SAELens's and circuit-tracer's layouts, and Google's.

    SAELens           cfg.json + sae_weights.safetensors: W_enc (d_source, dict_size), W_dec (dict_size, d_target),
                      b_enc, b_dec, and threshold (dict_size,) in a jumprelu_transcoder
    circuit-tracer    layer_L.safetensors: W_enc (dict_size, d_source), the rest alike, activation_function.threshold;
                      config.yaml beside it names the input

Both name the tensor that the encoder reads: ``ln2.hook_normalized`` is the residual before the norm's gain,
``mlp.hook_in`` and ``ln2.hook_out`` are what the MLP consumes. What a file asks for that is not done here is refused.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import DamagedError, MismatchError, UsageError
from transcoder.formats.foreign_files import check_shapes, read_json, read_tensors
from transcoder.formats.gemma_scope import locate, nominal_l0, read_gemma_scope
from transcoder.rules.threshold import JumpReLU
from transcoder.transcoder import SourceView, Transcoder

_VIEWS: dict[str, SourceView] = {
    "ln2.hook_normalized": "ln2_normalized",
    "mlp.hook_in": "mlp_in",
    "ln2.hook_out": "mlp_in",
}
_TARGETS = ("hook_mlp_out",)
_NAMES = {"W_enc", "b_enc", "W_dec", "b_dec"}
_CIRCUIT_TRACER_THRESHOLD = "activation_function.threshold"


@dataclass(frozen=True)
class Wanted:
    """What a dictionary must fit: the widths and the layer of the cache, and what the nearest is chosen by."""

    d_source: int
    d_target: int
    layer: int
    dict_size: int
    l0: float
    force: bool = False


def read_foreign(path: Path, wanted: Wanted) -> Transcoder:
    """The dictionary at ``path``, in whichever of the layouts it is.

    UsageError: no such thing there. DamagedError: not what its layout promises. MismatchError: another width, layer or
    convention.
    """
    if path.name == "sae_weights.safetensors" or (path / "sae_weights.safetensors").is_file():
        return read_saelens(path.parent if path.is_file() else path, wanted)
    if re.fullmatch(r"layer_\d+\.safetensors", path.name):
        return read_circuit_tracer(path, wanted)
    if (path / f"layer_{wanted.layer}.safetensors").is_file():
        return read_circuit_tracer(path / f"layer_{wanted.layer}.safetensors", wanted)
    file = locate(path, layer=wanted.layer, dict_size=wanted.dict_size, l0=wanted.l0)
    return read_gemma_scope(file, d_source=wanted.d_source, d_target=wanted.d_target)


def read_saelens(folder: Path, wanted: Wanted) -> Transcoder:
    """A ``jumprelu_transcoder``, or a ``transcoder``, whose threshold is 0."""
    config = read_json(folder / "cfg.json")
    architecture = config.get("architecture")
    if architecture not in ("jumprelu_transcoder", "transcoder"):
        what = f"The file holds a {architecture!r}; 'jumprelu_transcoder' and 'transcoder' are read."
        raise MismatchError(what, where=folder)
    if config.get("apply_b_dec_to_input", False) or config.get("normalize_activations", "none") not in ("none", None):
        what = "The file asks for b_dec to be subtracted from the input, or the input to be scaled: neither is done."
        raise MismatchError(what, where=folder)
    names = _NAMES | ({"threshold"} if architecture == "jumprelu_transcoder" else set())
    tensors = read_tensors(folder / "sae_weights.safetensors", names=names)
    metadata = config.get("metadata")
    said: dict[str, Any] = metadata if isinstance(metadata, dict) else config
    view = _view_of(said.get("hook_name"), said.get("hook_name_out"), folder, wanted)
    return _dictionary(tensors, folder.name, view=view, where=folder / "sae_weights.safetensors", wanted=wanted)


def read_circuit_tracer(path: Path, wanted: Wanted) -> Transcoder:
    """One layer of a set whose activation is JumpReLU, or ReLU where it has no threshold."""
    # Four flat keys of a yaml file: not worth a parser that runs on files from elsewhere.
    config = path.parent / "config.yaml"
    if not config.is_file():
        what = "There is no config.yaml beside the file to say what its encoder reads."
        raise UsageError(what, where=path.parent)
    said = dict(re.findall(r"^(\w+): *['\"]?([^'\"#\s]*)", config.read_text(errors="replace"), re.MULTILINE))
    if said.get("activation") == "topk":
        raise MismatchError("The set's activation is top-k; JumpReLU and ReLU are read.", where=config)
    layer = int(path.stem.removeprefix("layer_"))
    hooks = (f"blocks.{layer}.{said.get(f'feature_{side}_hook')}" for side in ("input", "output"))
    view = _view_of(*hooks, where=config, wanted=wanted)
    tensors = read_tensors(path, names=_NAMES, optional=frozenset({_CIRCUIT_TRACER_THRESHOLD, "W_skip"}))
    if "W_skip" in tensors:
        raise MismatchError("The file has a skip term, which is not read.", where=path)
    if _CIRCUIT_TRACER_THRESHOLD in tensors:
        tensors["threshold"] = tensors.pop(_CIRCUIT_TRACER_THRESHOLD)
    tensors["W_enc"] = tensors["W_enc"].T
    return _dictionary(tensors, path.stem, view=view, where=path, wanted=wanted)


def _view_of(source: object, target: object, where: Path, wanted: Wanted) -> SourceView:
    """What the encoder reads; the target must be the cache's, and the layer too unless forced."""
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", str(source))
    view = _VIEWS.get(found[2]) if found else None
    if found is None or view is None:
        what = f"The dictionary reads {source!r}; {', '.join(_VIEWS)} can be had from the cache."
        raise MismatchError(what, where=where)
    if not str(target).endswith(_TARGETS):
        what = f"The dictionary reconstructs {target!r}; the cache's target is hook_mlp_out."
        raise MismatchError(what, where=where)
    if int(found[1]) != wanted.layer and not wanted.force:
        what = f"The dictionary is of layer {found[1]}, the cache of layer {wanted.layer}."
        raise MismatchError(what, where=where, remedy="Name one of the same layer, or give --force.")
    return view


def _dictionary(tensors: dict[str, Tensor], name: str, *, view: SourceView, where: Path, wanted: Wanted) -> Transcoder:
    dict_size = tensors["b_enc"].numel()
    if dict_size == 0:
        raise DamagedError("The dictionary has no features.", where=where)
    found = (tensors["W_enc"].shape[:1], tensors["W_dec"].shape[1:])
    if found != ((wanted.d_source,), (wanted.d_target,)) and tensors["W_enc"].ndim == tensors["W_dec"].ndim == 2:
        what = f"The file maps {found[0][0]} to {found[1][0]} dimensions, the cache's rows {wanted.d_source} to "
        raise MismatchError(f"{what}{wanted.d_target}.", where=where)
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (wanted.d_source, dict_size),
        "b_enc": (dict_size,),
        "W_dec": (dict_size, wanted.d_target),
        "b_dec": (wanted.d_target,),
        "threshold": (dict_size,),
    }
    check_shapes(tensors, shapes, where)
    arrays = {key: tensor.float() for key, tensor in tensors.items()}
    threshold = arrays.pop("threshold", torch.zeros(dict_size))
    arrays["W_enc"] = arrays["W_enc"].T.contiguous()
    return Transcoder.from_arrays(
        arrays,
        rule=JumpReLU(threshold),
        name=name,
        source_view=view,
        nominal_l0=nominal_l0(where),
    )
