"""The device of a name on this machine, and its free memory: the same for every stage."""

import os
import resource
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from common.errors import UsageError


def choose_device(name: str) -> torch.device:
    """``auto`` is the first GPU, or the CPU. Raises UsageError for a device that does not exist; it lists the
    others."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if cards else "cpu")
    known = ["cpu", *(["cuda"] if cards else []), *(f"cuda:{index}" for index in range(cards))]
    if name not in known:
        raise UsageError(f"There is no device '{name}'.", remedy=f"On this machine: auto, {', '.join(known)}.")
    return torch.device(name)


def has_bfloat16(device: torch.device | str) -> bool:
    """Whether the device is a GPU that multiplies matrices in bfloat16; older ones only emulate it."""
    if torch.device(device).type != "cuda":
        return False
    # 8.0 is Ampere (A100), the first with tensor cores for bfloat16.
    return torch.cuda.get_device_capability(device) >= (8, 0)


def to_device(array: Tensor, device: torch.device | str) -> Tensor:
    """The array on a device. A copy from main memory to a GPU is queued there; this does not wait for it."""
    device = torch.device(device)
    if device.type != "cuda" or array.is_cuda:
        return array.to(device)
    # From pageable memory the host would wait until the device has done all of its queued work.
    return array.pin_memory().to(device, non_blocking=True)


def to_host(array: Tensor, out: Tensor | None = None) -> Tensor:
    """The array in main memory, in ``out`` if it is given; a GPU copies it while it does other work."""
    if array.device.type != "cuda":
        return array.cpu() if out is None else out.copy_(array)
    if out is None:
        # A GPU can copy by itself only to pinned memory, which the system does not move.
        out = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
    with on_second_stream(array.device):
        out.copy_(array, non_blocking=True)
    return out


def finish(devices: Iterable[torch.device]) -> None:
    """Wait until the devices have done all of their queued work."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


@contextmanager
def on_second_stream(device: torch.device) -> Generator[None]:
    """Queue the block's work on a second stream of the GPU: it begins after the work that was queued before the block,
    and runs at the same time as other work. The end of the block waits for it. On a CPU this does nothing."""
    if device.type != "cuda":
        yield
        return
    stream = _second_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


@cache
def _second_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for each device: memory that PyTorch keeps for a stream is used again only by that stream."""
    return torch.cuda.Stream(device)


def free_memory(device: torch.device | str) -> int:
    """Free bytes on the device; on a CPU, the bytes of main memory that are available without swapping."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        facts = dict(line.split(":", 1) for line in lines)
        return int(facts["MemAvailable"].split()[0]) * 1024  # given in units of 1,024 bytes
    except (OSError, KeyError, ValueError):
        # No /proc/meminfo (macOS): half of all memory is a careful estimate.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def peak_memory() -> int:
    """The most bytes of main memory that this process has used so far, libraries included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kilobytes
