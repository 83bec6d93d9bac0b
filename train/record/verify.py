"""Checks the files of a training: transcoder, checkpoints and log, also of sweep members."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xxhash

from common.errors import NestcoderError
from common.sealed.tensors import FileSeal, read_tensors
from train.record.checkpoint import CHECKPOINTS_FOLDER, arrays_path, facts_path
from train.record.checkpoint_index import INDEX_FILE, Entry, read_index
from train.record.log import DAMAGED, LOG_FILE
from transcoder.formats.cross_layer import load_cross_layer
from transcoder.formats.native import CONFIG_FILE, CROSS_LAYER, WEIGHTS_FILE, load_transcoder, read_config

_RUN_FILES = (CONFIG_FILE, WEIGHTS_FILE, LOG_FILE, CHECKPOINTS_FOLDER)
_COMPARED_KEYS = ("top_k", "prefixes", "activation", "dict_size")


def verify_run(folder: Path) -> list[str]:
    """Every fault in the files of a training in ``folder``, each as a sentence that names the file.

    An incomplete run is not a fault. Nothing is changed, and the cache is not read.
    """
    folders = [
        path for path in (folder, *sorted(folder.glob("*/"))) if any((path / name).exists() for name in _RUN_FILES)
    ]
    if not folders:
        return [f"{folder}: there is no training run here."]
    return [fault for path in folders for fault in _faults(path)]


def _faults(folder: Path) -> Iterator[str]:
    config = None
    if (folder / CONFIG_FILE).is_file():
        try:
            is_joint = read_config(folder).get("kind") == CROSS_LAYER
            config = (load_cross_layer if is_joint else load_transcoder)(folder).config
        except NestcoderError as error:
            yield _sentence(error, folder / CONFIG_FILE)
    checkpoints = folder / CHECKPOINTS_FOLDER
    try:
        index = read_index(checkpoints)
    except NestcoderError as error:
        yield _sentence(error, checkpoints / INDEX_FILE)
        return
    if not index.is_intact:
        yield f"{checkpoints / INDEX_FILE}: the index of the checkpoints is damaged."
    if not index.entries and any(checkpoints.glob("step-*")):
        yield f"{checkpoints}: there are checkpoints, but no index that names them."
    for entry in index.entries:
        yield from _checkpoint_faults(checkpoints, entry)
    if config and index.entries:
        yield from _config_faults(folder, config, facts_path(checkpoints, index.entries[-1].step))
    seal = index.entries[-1].log if index.entries else FileSeal(0, "")
    yield from _log_faults(folder / LOG_FILE, seal, is_complete=config is not None)


def _checkpoint_faults(checkpoints: Path, entry: Entry) -> Iterator[str]:
    facts = facts_path(checkpoints, entry.step)
    text = facts.read_bytes() if facts.is_file() else b""
    if FileSeal(len(text), xxhash.xxh3_128_hexdigest(text)) != entry.facts:
        yield f"{facts}: the file is missing or was changed."
    try:
        read_tensors(arrays_path(checkpoints, entry.step), entry.arrays)
    except NestcoderError as error:
        yield _sentence(error, arrays_path(checkpoints, entry.step))


def _config_faults(folder: Path, config: Mapping[str, Any], facts: Path) -> Iterator[str]:
    """Compare config.json with the settings in the newest checkpoint, whose hash is in the index."""
    try:
        settings = json.loads(facts.read_bytes())["identity"]["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # _checkpoint_faults has already named the file
    for key in _COMPARED_KEYS:
        if key in settings and config[key] != settings[key]:
            yield f"{folder / CONFIG_FILE}: {key} is {config[key]}, but the training used {settings[key]}."


def _log_faults(path: Path, seal: FileSeal, *, is_complete: bool) -> Iterator[str]:
    data = path.read_bytes() if path.is_file() else b""
    if len(data) < seal.size:
        yield f"{path}: the log has {len(data)} bytes, but had {seal.size} at the newest checkpoint."
    elif seal.hash and xxhash.xxh3_128_hexdigest(data[: seal.size]) != seal.hash:
        yield f"{path}: the log was changed."
    elif is_complete and len(data) > seal.size:
        yield f"{path}: the log has {len(data) - seal.size} bytes after the end of the run."
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        entry = _parsed(line)
        if entry is None:
            yield f"{path}, line {number}: this is not a JSON object."
        elif entry.get(DAMAGED):
            yield f"{path}, line {number}: lines above this one were cut or changed before step {entry.get('step')}."


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _sentence(error: NestcoderError, path: Path) -> str:
    return f"{error.where or path}: {error.what}"
