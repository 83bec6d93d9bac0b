"""Before a harvest: rows, bytes, memory and minutes, from arithmetic and a short timed run; which models fit where."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache.config import CacheSettings
from common import disk
from common.device import free_memory
from common.known_models import KNOWN_MODELS
from common.progress import Silent
from harvest.batch import BatchForward
from harvest.config import HarvestSettings
from harvest.memory import check_disk, choose_batch, missing_bytes, weight_bytes
from harvest.model.forward import Key
from harvest.model.language_model import load_found
from harvest.model.placement import in_words, place
from harvest.request import Job, make_job

_PROBE_SECONDS, _PROBE_BATCHES = 3.0, 64


@dataclass(frozen=True)
class HarvestPlan:
    """What a harvest will take. Bytes are of rows on disk; ``bytes_to_write`` leaves out what is already there."""

    model: str
    architecture: str
    parameters: int
    layers: list[int]
    device: str
    placement: list[str]
    dtype: str
    source: str
    target: str
    train_rows: int
    held_out_rows: int
    bytes_per_layer: int
    bytes_to_write: int
    free_disk_bytes: int
    weight_bytes: int
    free_memory_bytes: int
    batch_contexts: int
    tokens_per_second: float
    seconds: float
    finished_layers: list[int]


def plan_harvest(
    *,
    model: str,
    layers: list[int],
    settings: HarvestSettings,
    cache_settings: CacheSettings,
    folders: dict[int, Path],
    device: str,
    rank: int = 0,
    world: int = 1,
) -> HarvestPlan:
    """Say what ``harvest_layers`` would take, and write nothing.

    Raises what it would raise before its first row, CapacityError when disk or memory do not suffice.
    """
    job = make_job(
        model=model,
        layers=layers,
        settings=settings,
        cache_settings=cache_settings,
        device=device,
        rank=rank,
        world=world,
    )
    finished = [layer for layer in layers if job.finished(folders[layer], layer)]
    missing = [layer for layer in layers if layer not in finished]
    size, deepest = job.geometry.size_bytes, max(missing, default=0)
    weights = weight_bytes(job.where, job.dtype, layers=deepest + 1)
    batch, speed, placement = 0, float("inf"), list[str]()
    if missing:
        check_disk(job.least_bytes, [folders[layer] for layer in missing])
        placed = place(job.where, job.where.config_up_to(deepest), job.dtype, device=device)
        placement = in_words(placed, job.where, device=job.device, layers=deepest + 1)
        batch, speed = _probe(job, missing, device=device)
    rows = settings.train_tokens + settings.held_out_tokens
    return HarvestPlan(
        model=job.where.name,
        architecture=job.where.architecture,
        parameters=job.where.parameters,
        layers=layers,
        device=str(job.device),
        placement=placement,
        dtype=str(job.dtype).removeprefix("torch."),
        source=settings.source,
        target=settings.target,
        train_rows=settings.train_tokens,
        held_out_rows=settings.held_out_tokens,
        bytes_per_layer=size,
        bytes_to_write=sum(missing_bytes(size, folders[layer]) for layer in missing),
        free_disk_bytes=disk.free_bytes(folders[layers[0]]),
        weight_bytes=weights,
        free_memory_bytes=free_memory(job.device),
        batch_contexts=batch,
        tokens_per_second=speed,
        seconds=rows / world / speed,
        finished_layers=finished,
    )


def _probe(job: Job, layers: list[int], *, device: str) -> tuple[int, float]:
    """Contexts a batch, and tokens a second through the model, measured on the run's own text."""
    model = load_found(job.where, device=device, dtype=job.settings.dtype, last_layer=max(layers))
    batch = choose_batch(model, job.settings, layers=len(layers))
    keys: list[Key] = [(layer, site) for layer in layers for site in job.settings.sites]
    forward = BatchForward(model, job.settings, keys)
    stream = iter(job.stream(batch_contexts=batch, cursor=None))
    started, rows = time.perf_counter(), 0
    for number, text in zip(range(_PROBE_BATCHES), stream, strict=False):
        if number == 1:
            # The first batch warms up.
            started, rows = time.perf_counter(), 0
        forward.run(text, Silent()).arrive()
        rows += text.rows
        if time.perf_counter() - started > _PROBE_SECONDS:
            break
    return batch, max(rows, 1) / (time.perf_counter() - started)


def which_fit(free_bytes: int) -> dict[str, dict[str, Any]]:
    """For each model with an alias: the bytes of its weights in float32 and bfloat16, and whether they fit."""
    return {
        name: {
            str(dtype).removeprefix("torch."): {
                "bytes": known.parameters * dtype.itemsize,
                "fits": known.parameters * dtype.itemsize < free_bytes,
            }
            for dtype in (torch.float32, torch.bfloat16)
        }
        for name, known in KNOWN_MODELS.items()
    }
