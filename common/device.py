"""The device of a name on this machine, and its free memory: the same for every stage."""

import os
import resource
import sys
from collections.abc import Generator, Iterable, Iterator
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


def to_host(array: Tensor) -> Tensor:
    """The array in main memory; a GPU copies it while it does other work."""
    if array.device.type != "cuda":
        return array.cpu()
    return next(in_pieces(array, rows=max(1, len(array)), after=mark(array.device)))


def in_pieces(array: Tensor, *, rows: int, after: "Mark" = None) -> Iterator[Tensor]:
    """The array in main memory, at most so many ``rows`` at a time; in main memory already, it is one piece.

    A GPU copies each piece when the work before ``after`` is done, while it does other work. All pieces share one
    buffer: each is valid until the next is taken.
    """
    if array.device.type != "cuda":
        yield array
        return
    # A GPU can copy by itself only to pinned memory, which the system does not move and is slow to make. PyTorch keeps
    # a buffer of this size for the next call.
    buffer = torch.empty((min(rows, len(array)), *array.shape[1:]), dtype=array.dtype, pin_memory=True)
    for piece in array.split(rows):
        with on_stream(array.device, "copies", after=after):
            buffer[: len(piece)].copy_(piece, non_blocking=True)
        yield buffer[: len(piece)]


def finish(devices: Iterable[torch.device]) -> None:
    """Wait until the devices have done all of their queued work."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


Mark = torch.cuda.Event | None
"""A point in the work that was queued on a GPU; None on a CPU, where nothing is queued."""


def mark(device: torch.device) -> Mark:
    """The point after all work that this thread has queued on the device so far."""
    if device.type != "cuda":
        return None
    point = torch.cuda.Event()
    point.record(torch.cuda.current_stream(device))
    return point


def reach(point: Mark) -> None:
    """Wait until the device has done the work before ``point``."""
    if point is not None:
        point.synchronize()


@contextmanager
def on_stream(device: torch.device, name: str, *, after: Mark) -> Generator[None]:
    """Queue the block's work on a stream of the GPU with a name of its own: it begins when the work before ``after`` is
    done, and runs at the same time as other work. The end of the block waits for it. On a CPU this does nothing."""
    if device.type != "cuda":
        yield
        return
    stream = _stream(device, name)
    if after is not None:
        stream.wait_event(after)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        stream.synchronize()


@cache
def _stream(device: torch.device, name: str) -> torch.cuda.Stream:  # noqa: ARG001 - one stream for each name
    """One stream for each device and name: PyTorch keeps a stream's memory for that stream alone."""
    return torch.cuda.Stream(device)


def wake(device: torch.device, dtype: torch.dtype) -> None:
    """Start a GPU and its library of matrix products, which its first product does otherwise; a CPU is awake."""
    if device.type == "cuda":
        square = torch.ones(16, 16, device=device, dtype=dtype)
        torch.mm(square, square)
        torch.cuda.synchronize(device)


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
