"""circuit-tracer's layout of a cross-layer transcoder: two files for every layer of the model, and a config.yaml.

    W_enc_8.safetensors    W_enc_8 (dict_size, d_source)  b_enc_8 (dict_size,)  b_dec_8 (d_target,)
                           threshold_8 (dict_size,)       where the activation is JumpReLU
    W_dec_8.safetensors    W_dec_8 (dict_size, layers - 8, d_target): what is written to layer 8 and each one after it

It knows ReLU and JumpReLU, so a top-k one is written with thresholds. Blocks beyond the window are zeros, and a layer
of the model that the dictionary does not have gets features that never fire.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common import disk
from common.errors import DamagedError, MismatchError, UsageError
from common.sealed.tensors import FLOATS, check_arrays, read_metadata, write_tensors
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.formats.about import About, words_in
from transcoder.formats.files.safe import read_tensors
from transcoder.formats.sites import LayerSite
from transcoder.formats.wanted import Wanted, prefixes_of, sites_of_hooks, thresholds_of
from transcoder.rules.relu import ReLU
from transcoder.rules.rule import Rule
from transcoder.rules.threshold import JumpReLU
from transcoder.transcoder import SourceView, Transcoder

_CONFIG = "config.yaml"
_NEVER_FIRES = "never_fires"


def find_circuit_tracer_clt(path: Path) -> Path | None:
    """The folder that ``path`` means, where it is of this layout."""
    folder = path.parent if re.fullmatch(r"W_(enc|dec)_\d+\.safetensors", path.name) else path
    return folder if (folder / "W_enc_0.safetensors").is_file() else None


def write_circuit_tracer_clt(folder: Path, dictionary: CrossLayerTranscoder, about: About) -> list[int]:
    """All files; the layers that got features that never fire. ``about`` is of any of the layers."""
    layers = about.layers_of_model or max(dictionary.layers) + 1
    silent: list[int] = []
    for layer in range(layers):
        if layer in dictionary.layers:
            encoder = _encoder(dictionary, layer)
            decoder = _decoder(dictionary, layer, layers)
            metadata = about.header()
        else:
            silent.append(layer)
            encoder = _silent(dictionary)
            decoder = torch.zeros(dictionary.dict_size, layers - layer, dictionary.d_target)
            metadata = {"nestcoder": f'{{"{_NEVER_FIRES}": true}}'}
        named = {f"{name}_{layer}": array.detach().float().cpu() for name, array in encoder.items()}
        write_tensors(folder / f"W_enc_{layer}.safetensors", named, metadata=metadata)
        write_tensors(folder / f"W_dec_{layer}.safetensors", {f"W_dec_{layer}": decoder}, metadata=metadata)
    lines = [
        f"model_name: {about.model}",
        "model_kind: cross_layer_transcoder",
        f"feature_input_hook: {about.source_hook.split('.', 2)[2]}",
        f"feature_output_hook: {about.target_hook.split('.', 2)[2]}",
        f"scan: nestcoder/{about.model_name}",
    ]
    disk.write_file(folder / _CONFIG, ("\n".join(lines) + "\n").encode())
    return silent


def _encoder(dictionary: CrossLayerTranscoder, layer: int) -> dict[str, Tensor]:
    number = dictionary.layers.index(layer)
    piece = dictionary.piece(number)
    arrays = {"W_enc": piece.W_enc, "b_enc": piece.b_enc, "b_dec": dictionary.b_dec(number)}
    return arrays | ({"threshold": piece.rule.threshold} if isinstance(piece.rule, JumpReLU) else {})


def _decoder(dictionary: CrossLayerTranscoder, layer: int, layers: int) -> Tensor:
    number = dictionary.layers.index(layer)
    decoder = torch.zeros(dictionary.dict_size, layers - layer, dictionary.d_target)
    for written, block in dictionary.reach.blocks(dictionary.piece(number).W_dec.detach(), number):
        decoder[:, dictionary.layers[written] - layer] = block.float().cpu()
    return decoder


def _silent(like: CrossLayerTranscoder) -> dict[str, Tensor]:
    """Zeros whose thresholds no pre-activation exceeds."""
    first = like.piece(0)
    arrays = {
        "W_enc": torch.zeros(first.dict_size, first.d_source),
        "b_enc": torch.zeros(first.dict_size),
        "b_dec": torch.zeros(like.d_target),
    }
    return arrays | ({"threshold": torch.ones(first.dict_size)} if isinstance(first.rule, JumpReLU) else {})


@dataclass(frozen=True)
class _File:
    """A layer's arrays, by names without its number, and our words in their header."""

    layer: int
    arrays: Mapping[str, Tensor]
    words: Mapping[str, Any]


def read_circuit_tracer_clt(folder: Path, *, source_view: SourceView | None = None) -> CrossLayerTranscoder:
    """All layers but those that we filled up. ``source_view`` says what is read where the file's word means two things.

    UsageError: no config.yaml. DamagedError: files or tensors that are missing, or do not fit one another.
    MismatchError: tensors of the model that no cache can hold.
    """
    files = [_read(folder, layer) for layer in range(len(list(folder.glob("W_enc_*.safetensors"))))]
    _check(files, folder)
    there = [file for file in files if not file.words.get(_NEVER_FIRES)]
    fields, (source, target) = _config(folder, there[0].layer, source_view)
    window = _window(there)
    pieces = [_piece(there, number, window, source.site, folder) for number in range(len(there))]
    words = there[0].words
    config = {
        "model": fields.get("model_name"),
        "source_site": source.site,
        "target_site": target.site,
        "notes": [] if "prefixes" in words else ["its files tell of no prefixes: it has one, the whole dictionary"],
    }
    layers = [file.layer for file in there]
    return CrossLayerTranscoder(pieces, layers=layers, window=window, name=folder.name, config=config)


def _read(folder: Path, layer: int) -> _File:
    path = folder / f"W_enc_{layer}.safetensors"
    if not path.is_file():
        raise DamagedError(f"The files of layer {layer} are missing; other layers have theirs.", where=folder)
    own = {f"{name}_{layer}": name for name in ("W_enc", "b_enc", "b_dec", "threshold")}
    encoder = read_tensors(path, names=set(own) - {f"threshold_{layer}"}, optional=frozenset({f"threshold_{layer}"}))
    decoder = read_tensors(folder / f"W_dec_{layer}.safetensors", names={f"W_dec_{layer}"})
    arrays = {own[name]: array for name, array in encoder.items()} | {"W_dec": decoder[f"W_dec_{layer}"]}
    return _File(layer, arrays, words_in(read_metadata(path)))


def _check(files: list[_File], folder: Path) -> None:
    """Raises DamagedError for arrays that do not fit one another, MismatchError for what we would leave out."""
    first = files[0].arrays
    if first["W_enc"].ndim != 2 or not first["W_enc"].numel():
        raise DamagedError("The dictionary has no features.", where=folder)
    dict_size, d_source = first["W_enc"].shape
    d_target = first["b_dec"].numel()
    for file in files:
        shapes: dict[str, tuple[int, ...]] = {
            "W_enc": (dict_size, d_source),
            "b_enc": (dict_size,),
            "W_dec": (dict_size, len(files) - file.layer, d_target),
            "b_dec": (d_target,),
        }
        if "threshold" in first:
            shapes["threshold"] = (dict_size,)
        path = folder / f"W_enc_{file.layer}.safetensors"
        check_arrays(file.arrays, shapes, location=path, error=DamagedError, dtypes=FLOATS)
    silent = [file.layer for file in files if file.words.get(_NEVER_FIRES)]
    if len(silent) == len(files):
        raise DamagedError("No feature of any layer fires.", where=folder)
    for file in files:
        for layer in silent:
            if layer >= file.layer and bool(file.arrays["W_dec"][:, layer - file.layer].any()):
                what = f"Features of layer {file.layer} write to layer {layer}, whose own features never fire."
                raise MismatchError(what, where=folder)


def _config(
    folder: Path, layer: int, source_view: SourceView | None
) -> tuple[dict[str, str], tuple[LayerSite, LayerSite]]:
    """The keys of config.yaml, and what it says is read and written."""
    config = folder / _CONFIG
    if not config.is_file():
        raise UsageError("There is no config.yaml beside the files to say what the encoders read.", where=folder)
    # A few flat keys of a yaml file: not worth a parser that runs on files from elsewhere.
    fields = dict(re.findall(r"^(\w+): *['\"]?([^'\"#\s]*)", config.read_text(errors="replace"), re.MULTILINE))
    hooks = (f"blocks.{layer}.{fields.get(f'feature_{end}_hook')}" for end in ("input", "output"))
    wanted = Wanted(layer, source_view=source_view)
    return fields, sites_of_hooks(*hooks, path=config, wanted=wanted, model=fields.get("model_name"))


def _window(files: list[_File]) -> int:
    """How many of the dictionary's layers ahead anything is written."""
    reaches = [
        after - number
        for number, file in enumerate(files)
        for after in range(number, len(files))
        if bool(file.arrays["W_dec"][:, files[after].layer - file.layer].any())
    ]
    return max(reaches, default=0)


def _piece(files: list[_File], number: int, window: int, source_site: str, folder: Path) -> Transcoder:
    file = files[number]
    arrays = {name: array.float() for name, array in file.arrays.items()}
    written = [reached.layer - file.layer for reached in files[number : number + window + 1]]
    dict_size = arrays["b_enc"].numel()
    bias = torch.cat([arrays["b_dec"], torch.zeros((len(written) - 1) * arrays["b_dec"].numel())])
    rule: Rule = ReLU()
    if "threshold" in arrays:
        rule = JumpReLU(thresholds_of(arrays["threshold"], dict_size, path=folder))
    return Transcoder(
        W_enc=arrays["W_enc"],
        b_enc=arrays["b_enc"],
        W_dec=arrays["W_dec"][:, written].flatten(1),
        b_dec=bias,
        rule=rule,
        prefixes=prefixes_of(file.words.get("prefixes"), dict_size),
        name=f"{file.layer:02d}",
        source_view="ln2_normalized" if source_site == "ln2_normalized" else "mlp_in",
    )
