"""A cross-layer transcoder in one folder: transcoder.safetensors and config.json, sealed like those of one layer.

    08/W_enc      (d_source, dict_size)               08/b_enc    (dict_size,)
    08/W_dec      (dict_size, targets, d_target)      targets: layer 8 itself, and the ones after it within the window
    08/b_dec      (d_target,)                         08/<array of its rule>
    08/W_skip     (d_source, d_target)                where there is a skip, from layer 8 to layer 8

Sources, targets and biases are in the units of the caches. Activations are in units of training, where every layer's
target varies by 1 a dimension: a row of ``W_dec`` times ``target_scales`` of the layers that it writes to has norm 1.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import DamagedError, MismatchError
from common.sealed.tensors import FileSeal, check_arrays, read_tensors
from transcoder.cross_layer import CrossLayerTranscoder, Reach, over_all_layers
from transcoder.formats.native import (
    CONFIG_FILE,
    CROSS_LAYER,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    read_config,
    write_folder,
)
from transcoder.formats.published import PREFIX, fetch_published
from transcoder.rules.registry import RULES
from transcoder.rules.rule import is_count
from transcoder.transcoder import Transcoder


def save_cross_layer(dictionary: CrossLayerTranscoder, folder: Path, *, config: Mapping[str, Any]) -> dict[str, Any]:
    """Write both files, config.json last, and return what it says. ``config`` adds where the dictionary comes from."""
    first = dictionary.piece(0)
    pieces = [dictionary.piece(number) for number in range(len(dictionary.layers))]
    arrays: dict[str, Tensor] = {}
    for layer, piece in zip(dictionary.layers, pieces, strict=True):
        own = {
            "W_enc": piece.W_enc.T,
            "b_enc": piece.b_enc,
            "W_dec": piece.W_dec.unflatten(1, (-1, dictionary.d_target)),
            "b_dec": piece.b_dec[: dictionary.d_target],
        }
        if piece.W_skip is not None:
            own["W_skip"] = piece.W_skip
        named = own | piece.rule.arrays()
        arrays |= {f"{layer:02d}/{name}": array.detach().float() for name, array in named.items()}
    document = {
        "format_version": FORMAT_VERSION,
        "kind": CROSS_LAYER,
        "layers": list(dictionary.layers),
        "window": dictionary.reach.window,
        "over_layers": dictionary.over_layers,
        "dict_size": dictionary.dict_size,
        "prefixes": list(dictionary.prefixes),
        "activation": first.rule.name,
        "threshold": None,
        "d_source": first.d_source,
        "d_target": dictionary.d_target,
        "skip": dictionary.has_skip,
        "source_view": first.source_view,
        **config,
        "top_k": dictionary.top_k,
        "rules": [piece.rule.as_config() for piece in pieces],
    }
    return write_folder(folder, arrays, document)


def load_cross_layer(path: str | Path, *, device: str = "cpu") -> CrossLayerTranscoder:
    """The cross-layer transcoder in a folder (or given its transcoder.safetensors).

    ``hf:user/repository/layers00-11`` is one that was published on the Hugging Face Hub, fetched the first time.

    Raises DamagedError for missing or altered files, DiskError for unreadable ones, MismatchError for files of another
    kind or format version.
    """
    if isinstance(path, str) and path.startswith(PREFIX):
        path = fetch_published(path)
    folder = Path(path).parent if Path(path).name == WEIGHTS_FILE else Path(path)
    config = read_config(folder)
    _check(config, folder / CONFIG_FILE)
    seal = FileSeal.parse(config.get("weights"), location=folder / CONFIG_FILE)
    arrays = read_tensors(folder / WEIGHTS_FILE, seal, device=device)
    reach = Reach(len(config["layers"]), config["window"], config["d_target"])
    rule_class = RULES[config["activation"]].load()
    shapes: dict[str, tuple[int, ...]] = {}
    for number, layer in enumerate(config["layers"]):
        own = _shapes(config, reach, number) | rule_class.array_shapes(config | config["rules"][number])
        shapes |= {f"{layer:02d}/{name}": shape for name, shape in own.items()}
    check_arrays(arrays, shapes, location=folder / WEIGHTS_FILE)
    pieces = [_piece(arrays, config, reach, number) for number in range(reach.layers)]
    return CrossLayerTranscoder(
        pieces,
        layers=config["layers"],
        window=reach.window,
        top_k=config["top_k"],
        over_layers=config["over_layers"],
        name=folder.name,
        config=config,
    )


def _piece(arrays: Mapping[str, Tensor], config: Mapping[str, Any], reach: Reach, number: int) -> Transcoder:
    """A source layer, from the arrays that bear its number."""
    prefix = f"{config['layers'][number]:02d}/"
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    bias = own["b_dec"]
    if config["over_layers"]:
        rule = over_all_layers(config["top_k"], layers=reach.layers, dict_size=config["dict_size"])
    else:
        rule = RULES[config["activation"]].load().from_config(config | config["rules"][number], own)
    return Transcoder(
        W_enc=own["W_enc"].T.contiguous(),
        b_enc=own["b_enc"],
        W_dec=own["W_dec"].flatten(1),
        b_dec=torch.cat([bias, bias.new_zeros(reach.wide(number) - reach.width)]),
        W_skip=own.get("W_skip"),
        rule=rule,
        prefixes=tuple(config["prefixes"]),
        name=f"{prefix.rstrip('/')}",
        source_view=config["source_view"],
        tokens_trained=config.get("tokens_trained"),
    )


def _shapes(config: Mapping[str, Any], reach: Reach, number: int) -> dict[str, tuple[int, ...]]:
    """The arrays of a source layer, as they lie in the file."""
    dict_size = config["dict_size"]
    skip = {"W_skip": (config["d_source"], reach.width)} if config["skip"] else {}
    return skip | {
        "W_enc": (config["d_source"], dict_size),
        "b_enc": (dict_size,),
        "W_dec": (dict_size, len(reach.written(number)), reach.width),
        "b_dec": (reach.width,),
    }


def _check(config: Mapping[str, Any], path: Path) -> None:
    """Raises MismatchError for another kind, DamagedError for keys that make no sense."""
    if config.get("kind") != CROSS_LAYER:
        what = f"This is a {config.get('kind', 'transcoder')}, of one layer."
        raise MismatchError(what, where=path, remedy="Read it with nestcoder.load_transcoder.")
    layers = config.get("layers")
    rules = config.get("rules")
    sound = {
        "layers": isinstance(layers, list)
        and bool(layers)
        and all(type(layer) is int and layer >= 0 for layer in layers)
        and all(earlier < later for earlier, later in pairwise(layers)),
        "window": config.get("window") == 0 or is_count(config.get("window")),
        "over_layers": isinstance(config.get("over_layers"), bool),
    }
    if isinstance(layers, list):
        sound["rules"] = isinstance(rules, list) and len(rules) == len(layers) and all(map(_is_mapping, rules))
    wrong = [key for key, is_right in sound.items() if not is_right]
    if not wrong and isinstance(rules, list):
        rule = RULES[config["activation"]].load()
        wrong = [key for own in rules for key in rule.wrong_keys({"threshold": None} | own)]
    if wrong:
        raise DamagedError(f"config.json makes no sense: {', '.join(wrong)}.", where=path)


def _is_mapping(value: object) -> bool:
    return isinstance(value, dict)
