"""``nestcoder doctor``: versions, devices, memory, disk, models that fit, and what ``auto`` means on this machine."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.known_models import KNOWN_MODELS
from common.units import in_bytes
from nestcoder.invocation import CommandResult
from nestcoder.text import table

_PACKAGES = ("torch", "transformer-lens", "transformers", "datasets", "zarr", "numcodecs", "safetensors", "numpy")

_ITEM_BYTES = {"bfloat16": 2, "float32": 4}
_DTYPES = tuple(_ITEM_BYTES)
_ROW_NUMBERS = 2  # a row has a source and a target of the model's width
_ROOM = 1.2  # the weights, and a fifth more for activations and the library's own memory


def examine(folder: Path, *, model: str | None = None) -> CommandResult:
    """Facts about this machine; ``folder`` is on the disk of the runs.

    With ``model``, a local folder or a known short name, they are about that model only: its sizes, and which of its
    layers can be harvested on which device. Raises UsageError for another model, and what ``find_model`` raises.
    """
    import torch

    from common.device import choose_device

    devices = _devices()
    chosen = str(choose_device("auto"))
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "disk_free_bytes": shutil.disk_usage(folder).free,
        "devices": devices,
        "chosen": {"device": chosen, "dtype": "float32" if chosen == "cpu" else "bfloat16"},
    }
    if model is None:
        facts["models"] = model_facts(devices)
    elif model in KNOWN_MODELS:
        facts["models"] = {model: model_facts(devices)[model]}
    else:
        facts["model"] = folder_facts(model, devices)
    return CommandResult(facts, _as_text(facts))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import torch

    from common.device import free_memory

    found: list[dict[str, Any]] = [
        {
            "device": "cpu",
            "name": platform.machine(),
            "free_bytes": free_memory("cpu"),
            "all_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        }
    ]
    for index in range(torch.cuda.device_count()):
        free, everything = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        found.append({"device": f"cuda:{index}", "name": name, "free_bytes": free, "all_bytes": everything})
    return found


def model_facts(devices: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each model with a short name: bytes of its weights, on which of the devices they fit, bytes of a cache."""
    from harvest.plan import which_fit

    free = {device["device"]: device["free_bytes"] for device in devices}
    cards = [size for name, size in free.items() if name != "cpu"]
    if len(cards) > 1:
        free["all cards together"] = sum(cards)
    fitting = {name: which_fit(int(size / _ROOM)) for name, size in free.items()}
    weights = which_fit(0)
    return {
        name: {
            "weights_bytes": {dtype: weights[name][dtype]["bytes"] for dtype in _DTYPES},
            "fits": {
                dtype: [device for device, models in fitting.items() if models[name][dtype]["fits"]]
                for dtype in _DTYPES
            },
            "cache_bytes_per_million_tokens": 1_000_000 * _ROW_NUMBERS * known.width * _ITEM_BYTES["bfloat16"],
        }
        for name, known in KNOWN_MODELS.items()
    }


def folder_facts(model: str, devices: list[dict[str, Any]]) -> dict[str, Any]:
    """For a model in a local folder: its sizes, and the highest layer whose harvest fits on each device.

    A harvest of a layer loads only the blocks up to it.
    """
    from harvest.model.source import find_model

    if not Path(model).is_dir():
        what = f"'{model}' is neither a folder nor one of the known names."
        raise UsageError(what, remedy=f"Give a folder in Hugging Face format, or one of: {', '.join(KNOWN_MODELS)}.")
    source = find_model(model)
    sizes = [source.parameters_up_to(layer) for layer in range(source.layers)]

    def deepest(free_bytes: int, item_bytes: int) -> int | None:
        return max((layer for layer, size in enumerate(sizes) if size * item_bytes * _ROOM < free_bytes), default=None)

    return {
        "folder": str(source.folder),
        "architecture": source.architecture,
        "layers": source.layers,
        "width": source.width,
        "longest_context": source.positions,
        "parameters": source.parameters,
        "weights_bytes": {dtype: source.parameters * _ITEM_BYTES[dtype] for dtype in _DTYPES},
        "deepest_layer": {
            device["device"]: {dtype: deepest(device["free_bytes"], _ITEM_BYTES[dtype]) for dtype in _DTYPES}
            for device in devices
        },
        "cache_bytes_per_million_tokens": 1_000_000 * _ROW_NUMBERS * source.width * _ITEM_BYTES["bfloat16"],
    }


def _folder_lines(model: dict[str, Any]) -> list[str]:
    """The result of ``folder_facts`` for people."""
    heading = ("layers that fit on", *_DTYPES)
    last = model["layers"] - 1
    rows = [
        (device, *("none" if deepest[dtype] is None else f"0 to {deepest[dtype]} of {last}" for dtype in _DTYPES))
        for device, deepest in model["deepest_layer"].items()
    ]
    weights = ", ".join(f"{in_bytes(size)} in {dtype}" for dtype, size in model["weights_bytes"].items())
    return [
        f"{model['folder']}: {model['architecture']}, {model['layers']} layers, width {model['width']:,}, "
        f"contexts of up to {model['longest_context']:,} tokens",
        f"{model['parameters']:,} weights: {weights}",
        f"a cache takes {in_bytes(model['cache_bytes_per_million_tokens'])} for a million tokens in 16 bits",
        "",
        *table(heading, rows),
    ]


def _model_lines(models: dict[str, dict[str, Any]]) -> list[str]:
    rows = [
        (
            name,
            *(
                f"{in_bytes(size)} {', '.join(model['fits'][dtype]) or '-'}"
                for dtype, size in model["weights_bytes"].items()
            ),
            in_bytes(model["cache_bytes_per_million_tokens"]),
        )
        for name, model in models.items()
    ]
    return table(("model", "bfloat16, fits on", "float32, fits on", "cache a million tokens"), rows)


def _as_text(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number or 'missing'}" for name, number in facts["versions"].items())
    chosen = facts["chosen"]
    devices = [(d["device"], d["name"], in_bytes(d["free_bytes"]), in_bytes(d["all_bytes"])) for d in facts["devices"]]
    return "\n".join(
        [
            f"Python {facts['python']} on {facts['system']}; {facts['processors']} processors",
            versions,
            f"{in_bytes(facts['disk_free_bytes'])} free on this disk",
            "",
            *table(("device", "name", "free", "in all"), devices),
            "",
            f"--device auto means {chosen['device']}, harvest.dtype auto means {chosen['dtype']}.",
            "",
            *(_folder_lines(facts["model"]) if "model" in facts else _model_lines(facts["models"])),
        ]
    )
