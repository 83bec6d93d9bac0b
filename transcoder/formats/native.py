"""Our own format: transcoder.safetensors with the arrays, config.json with everything else.

The arrays are float32, decoder rows of norm 1, in the units of the cache. In the file ``W_enc`` is (d_source,
dict_size), as the field writes it; in memory it is feature-major, (dict_size, d_source). ``config.json`` is written
last. It has the size and hash of the other file, and a seal: the hash of its own entries. The header of the arrays'
file says that there must be a seal, so that removing it is noticed. Transcoders of earlier releases have no seal, and
are read with a note.
"""

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from common import disk
from common.errors import DamagedError, MismatchError
from common.hashing import hash_bytes
from common.progress import Progress
from common.sealed.tensors import FileSeal, check_arrays, read_metadata, read_tensors, write_tensors
from transcoder.formats.files.safe import read_json
from transcoder.formats.published import PREFIX, fetch_published
from transcoder.rules.registry import RULES
from transcoder.rules.rule import is_count
from transcoder.transcoder import SourceView, Transcoder

FORMAT_VERSION = 1
"""Of both files; a reader refuses one that it does not know."""
WEIGHTS_FILE = "transcoder.safetensors"
CONFIG_FILE = "config.json"
CROSS_LAYER = "cross-layer"
"""The kind whose arrays are those of transcoder/formats/cross_layer.py."""
_SEAL = "seal"
"""The key of config.json that holds the hash of the others."""
_MARK = "sealed"
"""The entry of the header of the arrays' file that says that config.json has a seal."""


def has_both_files(folder: Path) -> bool:
    """Whether ``folder`` has the two files of a complete dictionary; their contents are checked when they are read."""
    return (folder / CONFIG_FILE).is_file() and (folder / WEIGHTS_FILE).is_file()


def save_transcoder(transcoder: Transcoder, folder: Path, *, config: Mapping[str, Any]) -> dict[str, Any]:
    """Write both files, config.json last, and return what it says. ``config`` adds where the transcoder comes from."""
    rule = transcoder.rule
    arrays = {name: array.detach().float() for name, array in transcoder.arrays().items()}
    arrays["W_enc"] = arrays["W_enc"].T
    document = {
        "format_version": FORMAT_VERSION,
        "dict_size": transcoder.dict_size,
        "top_k": None,
        "prefixes": list(transcoder.prefixes),
        "activation": rule.name,
        "threshold": None,
        "d_source": transcoder.d_source,
        "d_target": transcoder.d_target,
        "skip": transcoder.W_skip is not None,
        "source_view": transcoder.source_view,
        **rule.as_config(),
        **config,
    }
    return write_folder(folder, arrays | rule.arrays(), document)


def write_folder(folder: Path, arrays: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Any]:
    """Write the arrays, then config.json with their seal and its own; returns what it says."""
    seal = write_tensors(folder / WEIGHTS_FILE, arrays, metadata={_MARK: "config.json"})
    document = json.loads(json.dumps({**config, "weights": {"file": WEIGHTS_FILE, **seal.as_dict()}}))
    document[_SEAL] = _seal_of(document)
    disk.write_file(folder / CONFIG_FILE, (json.dumps(document, indent=1) + "\n").encode())
    return document


def load_transcoder(path: str | Path, *, device: str = "cpu", progress: Progress | None = None) -> Transcoder:
    """The transcoder in a folder (or given its transcoder.safetensors), with its config.json as ``config``.

    ``hf:user/repository/layer08`` is one that was published on the Hugging Face Hub, fetched the first time.

    Its arrays ask for no gradient. ``progress`` gets a note where an earlier release wrote it, whose config.json has no
    seal. Raises DamagedError for missing or altered files, DiskError for unreadable ones, MismatchError for files of
    another kind or format version.
    """
    if isinstance(path, str) and path.startswith(PREFIX):
        path = fetch_published(path)
    folder = Path(path).parent if Path(path).name == WEIGHTS_FILE else Path(path)
    config = read_config(folder)
    if config.get("kind") == CROSS_LAYER:
        what = "This is a cross-layer transcoder, of several layers."
        raise MismatchError(what, where=folder, remedy="Read it with nestcoder.load_cross_layer.")
    if progress and _SEAL not in config:
        progress.note(
            f"{folder / CONFIG_FILE} has no checksum, because an earlier release wrote it: changes are not noticed."
        )
    seal = FileSeal.parse(config.get("weights"), location=folder / CONFIG_FILE)
    arrays = read_tensors(folder / WEIGHTS_FILE, seal, device=device)
    rule = RULES[config["activation"]].load()
    rule_shapes = rule.array_shapes(config)
    check_arrays(arrays, _shapes(config) | rule_shapes, location=folder / WEIGHTS_FILE)
    rule_arrays = {name: arrays.pop(name) for name in rule_shapes}
    arrays["W_enc"] = arrays["W_enc"].T.contiguous()
    return Transcoder.from_arrays(
        arrays,
        rule=rule.from_config(config, rule_arrays),
        prefixes=tuple(config["prefixes"]),
        name=folder.name,
        source_view=config["source_view"],
        tokens_trained=config.get("tokens_trained"),
        config=config,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a saved transcoder, checked. Raises DamagedError, DiskError or MismatchError."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise DamagedError("There is no trained transcoder here: config.json is missing.", where=folder)
    config = read_json(path)
    if "format_version" not in config:
        raise MismatchError("The file is not a nestcoder transcoder's config.json.", where=path)
    if config["format_version"] != FORMAT_VERSION:
        raise MismatchError(f"Format version {config['format_version']!r} is unknown to this release.", where=path)
    wrong = [key for key, is_right in _RIGHT.items() if not (key in config and is_right(config[key]))]
    wrong += [key for key, is_right in _RIGHT_WHERE_THERE.items() if key in config and not is_right(config[key])]
    wrong = wrong or RULES[config["activation"]].load().wrong_keys(config)
    if wrong or config["prefixes"][-1] != config["dict_size"]:
        raise DamagedError(f"config.json makes no sense: {', '.join(wrong) or 'prefixes and dict_size'}.", where=path)
    _check_seal(config, folder)
    return config


def _check_seal(config: Mapping[str, Any], folder: Path) -> None:
    """Raises DamagedError if config.json was changed, or its seal was removed."""
    path = folder / CONFIG_FILE
    weights = folder / WEIGHTS_FILE
    if _SEAL in config:
        if config[_SEAL] != _seal_of(config):
            raise DamagedError("The file was changed: its checksum differs.", where=path)
    elif weights.is_file() and _MARK in read_metadata(weights):
        raise DamagedError("The file's checksum is missing, but it was written with one.", where=path)


def _seal_of(config: Mapping[str, Any]) -> str:
    """The hash of all entries of config.json except the seal."""
    sealed = {key: value for key, value in config.items() if key != _SEAL}
    return hash_bytes(json.dumps(sealed, sort_keys=True, separators=(",", ":")).encode())


def _are_prefixes(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(map(is_count, value))
        and all(earlier < later for earlier, later in pairwise(value))
    )


_RIGHT: dict[str, Callable[[Any], bool]] = {
    "dict_size": is_count,
    "d_source": is_count,
    "d_target": is_count,
    "prefixes": _are_prefixes,
    "activation": lambda value: isinstance(value, str) and value in RULES,
    "skip": lambda value: isinstance(value, bool),
    "source_view": lambda value: value in get_args(SourceView),
}
_RIGHT_WHERE_THERE: dict[str, Callable[[Any], bool]] = {
    "kind": lambda value: value in ("transcoder", "sae", CROSS_LAYER),
    "side": lambda value: value in (None, "source", "target"),
}
"""Keys that transcoders of earlier releases and of other tools do not have."""


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays in the file, from config.json."""
    d_source = config["d_source"]
    d_target = config["d_target"]
    dict_size = config["dict_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (d_source, dict_size),
        "b_enc": (dict_size,),
        "W_dec": (dict_size, d_target),
        "b_dec": (d_target,),
    }
    return shapes | ({"W_skip": (d_source, d_target)} if config["skip"] else {})
