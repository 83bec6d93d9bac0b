"""Which device a name means on this machine: one answer for every stage."""

import torch

from cache.errors import UsageError


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU, or the CPU; a device that is not there is a UsageError that lists those that are."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if cards else "cpu")
    known = ["cpu", *(["cuda"] if cards else []), *(f"cuda:{index}" for index in range(cards))]
    if name not in known:
        raise UsageError(f"There is no device '{name}'.", remedy=f"On this machine: auto, {', '.join(known)}.")
    return torch.device(name)
