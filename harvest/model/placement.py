"""Which card each block of a model goes to when no single card has room for all of them."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from common.device import choose_device, free_memory
from common.errors import CapacityError
from common.units import in_bytes
from harvest.model.source import ModelSource

DeviceMap = dict[str, str]
"""A device by module path, as in Hugging Face's ``device_map``."""
_WEIGHTS_SHARE = 0.8
"""The share of a card's free memory for weights; the rest is for activations and the kernels' workspaces."""
_STEPS = 40
"""The share of the budgets is raised in this many steps until all blocks fit, which fills the cards equally."""


def place_blocks(
    source: ModelSource, config: Any, dtype: torch.dtype, *, device: str, kept_layer: int | None = None
) -> DeviceMap | None:
    """The device of each block of ``config``; None if all go to one device.

    Several cards are used only with ``auto``, and only when the first has not enough room. ``kept_layer`` is the last
    block that stays when the others are cut off later. Raises CapacityError when there is not enough room.
    """
    chosen = choose_device(device)
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    needed = source.parameters_up_to(config.num_hidden_layers - 1) * dtype.itemsize
    free = free_memory(chosen)
    if device == "auto" and cards > 1 and needed > free * _WEIGHTS_SHARE:
        budgets = {
            f"cuda:{card}": int(free_memory(torch.device("cuda", card)) * _WEIGHTS_SHARE) for card in range(cards)
        }
        return spread(source, config, dtype, budgets=budgets, kept_layer=kept_layer)
    if needed > free:
        raise _too_large(source, dtype, needed, free, on=str(chosen))
    return None


def has_room_for_all(source: ModelSource, dtype: torch.dtype, *, device: str, processes: int = 1) -> bool:
    """Whether the complete model fits, also when ``processes`` load it into the same memory."""
    chosen = choose_device(device)
    needed = source.parameters * dtype.itemsize
    if chosen.type == "cpu":
        return needed * processes <= free_memory(chosen) * _WEIGHTS_SHARE
    try:
        placed = place_blocks(source, source.config, dtype, device=device)
    except CapacityError:
        return False
    return placed is not None or needed <= free_memory(chosen) * _WEIGHTS_SHARE


def _too_large(source: ModelSource, dtype: torch.dtype, needed: int, free: int, *, on: str) -> CapacityError:
    return CapacityError(
        f"The weights of {source.name} take {in_bytes(needed)} as {dtype}; {in_bytes(free)} are free on {on}.",
        remedy="Choose harvest.dtype bfloat16, a smaller model, a lower layer, or another device.",
    )


def spread(
    source: ModelSource, config: Any, dtype: torch.dtype, *, budgets: dict[str, int], kept_layer: int | None = None
) -> DeviceMap:
    """Successive blocks for each device, each filled to about the same share of its budget of bytes.

    The final norm goes to the device of block ``kept_layer`` (None: the last). Raises CapacityError when there is not
    enough room.
    """
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=dtype)
    path = source.family.blocks
    first = next(iter(budgets))
    sizes = [_bytes_of(block) for block in skeleton.get_submodule(path)]
    outside = _bytes_of(skeleton) - sum(sizes)
    for step in range(1, _STEPS + 1):
        room = {device: budget * step // _STEPS for device, budget in budgets.items()}
        room[first] -= outside
        if (found := _fill(sizes, room)) is not None:
            last = found[-1 if kept_layer is None else kept_layer]
            outer = _outer_devices(skeleton, path, first=first, last=last)
            return outer | {f"{path}.{block}": device for block, device in enumerate(found)}
    raise _too_large(source, dtype, outside + sum(sizes), sum(budgets.values()), on=" and ".join(budgets))


def _bytes_of(module: Any) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def _fill(sizes: Sequence[int], room: dict[str, int]) -> list[str] | None:
    """The device of each block, in order; None when there is not enough room."""
    devices = iter(room)
    chosen: list[str] = []
    device = ""
    left = -1
    for size in sizes:
        while left < size:
            device = next(devices, "")
            if not device:
                return None
            left = room[device]
        chosen.append(device)
        left -= size
    return chosen


def _outer_devices(skeleton: Any, path: str, *, first: str, last: str) -> DeviceMap:
    """The devices of all modules outside the blocks: the first device, and the last for the final norm.

    The bridge computes that norm itself and cannot move its input from another card.
    """
    module = skeleton
    prefix = ""
    placed = DeviceMap()
    for name in path.split("."):
        children = list(module.named_children())
        position = [child for child, _ in children].index(name)
        for number, (child, outer) in enumerate(children):
            if number != position:
                is_final_norm = number > position and prefix and _bytes_of(outer)
                placed[f"{prefix}{child}"] = last if is_final_norm else first
        module = getattr(module, name)
        prefix = f"{prefix}{name}."
    return placed


def in_words(placed: DeviceMap | None, source: ModelSource, *, device: torch.device, layers: int) -> list[str]:
    """Which blocks are on which device, one line for each device."""
    path = source.family.blocks
    devices = [placed[f"{path}.{block}"] if placed else str(device) for block in range(layers)]
    by_device = groupby(enumerate(devices), key=lambda pair: pair[1])
    runs = [(name, [block for block, _ in run]) for name, run in by_device]
    return [f"blocks {run[0]} to {run[-1]} on {name}" for name, run in runs]
