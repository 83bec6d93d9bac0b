"""What this machine is and what the pipeline would choose on it: versions, devices, memory, disk, models that fit."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.units import in_bytes
from nestcoder.invocation import CommandResult
from nestcoder.text import table

_PACKAGES = ("torch", "transformer-lens", "transformers", "datasets", "zarr", "numcodecs", "safetensors", "numpy")

_WIDTHS = {
    "gpt2": 768,
    "gpt2-medium": 1024,
    "gpt2-large": 1280,
    "gpt2-xl": 1600,
    "gemma-2-2b": 2304,
    "gemma-2-9b": 3584,
    "gemma-2-27b": 4608,
}
_DTYPES = ("bfloat16", "float32")
_ROOM = 1.2  # activations and the library's own memory beside the weights


def examine(folder: Path) -> CommandResult:
    """Facts about this machine; ``folder`` is where runs would be written."""
    import torch

    from common.device import choose_device

    devices, chosen = _devices(), str(choose_device("auto"))
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "disk_free_bytes": shutil.disk_usage(folder).free,
        "devices": devices,
        "chosen": {"device": chosen, "dtype": "float32" if chosen == "cpu" else "bfloat16"},
        "models": model_facts(devices),
    }
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
    """Of each model with an alias: bytes of its weights, on which of the devices they fit, bytes of a cache."""
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
            "cache_bytes_per_million_tokens": 1_000_000 * 2 * 2 * width,
        }
        for name, width in _WIDTHS.items()
    }


def _as_text(facts: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number or 'missing'}" for name, number in facts["versions"].items())
    chosen = facts["chosen"]
    devices = [(d["device"], d["name"], in_bytes(d["free_bytes"]), in_bytes(d["all_bytes"])) for d in facts["devices"]]
    models = [
        (
            name,
            *(
                f"{in_bytes(size)} {', '.join(model['fits'][dtype]) or '-'}"
                for dtype, size in model["weights_bytes"].items()
            ),
            in_bytes(model["cache_bytes_per_million_tokens"]),
        )
        for name, model in facts["models"].items()
    ]
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
            *table(("model", "bfloat16, fits on", "float32, fits on", "cache a million tokens"), models),
        ]
    )
