"""The plan of a harvest: rows, bytes, memory and minutes, computed or from a short timed run; which models fit."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from common import disk
from common.device import finish, free_memory, peak_memory
from common.errors import UsageError
from common.known_models import KNOWN_MODELS
from common.progress import Silent
from harvest.batch import BatchForward
from harvest.config import HarvestSettings
from harvest.memory import buffer_bytes, check_disk, choose_batch, missing_bytes, own_loss_bytes, weight_bytes
from harvest.model.forward import Key
from harvest.model.language_model import load_found
from harvest.model.placement import has_room_for_all, in_words, place_blocks
from harvest.model.unembedding import bytes_beside
from harvest.prepare import PreparedHarvest, prepare
from harvest.request import HarvestRequest
from harvest.text.split import document_bytes, is_held_out

_TIMED_SECONDS = 3.0
"""How long the model is timed: enough for a steady rate, and a short time to wait for a plan."""
_TIMED_BATCHES = 64
"""A fast GPU has a steady rate after this many batches, and does not need the three seconds."""
_COUNTED_SECONDS = 5.0
"""How long held-out documents are counted before the number of the others is extrapolated."""
_WAITING_BATCHES = 4
"""Batches of rows between the model and the disk: two wait, one is written and one computed."""
_ENOUGH_DOCUMENTS = 100
"""With fewer held-out documents an interval over documents cannot be trusted."""


@dataclass(frozen=True)
class HarvestPlan:
    """What a harvest will take. Bytes are those of rows on disk; ``unembedding_bytes`` come in addition in each layer's
    cache; ``bytes_to_write`` does not count what is already there.

    ``peak_memory_bytes`` is main memory if the model is on the CPU, None on a card. Two harvests took 5 and 7 % more
    than it says.
    """

    model: str
    architecture: str
    parameters: int
    layers: list[int]
    device: str
    placement: list[str]
    dtype: str
    source: str
    target: str
    contexts_begin_with: str
    train_rows: int
    held_out_rows: int
    bytes_per_layer: int
    unembedding_bytes: int
    bytes_to_write: int
    free_disk_bytes: int
    weight_bytes: int
    peak_memory_bytes: int | None
    free_memory_bytes: int
    batch_contexts: int
    tokens_per_second: float
    seconds: float
    finished_layers: list[int]
    held_out_documents: int
    advice: list[str]


def plan_harvest(request: HarvestRequest) -> HarvestPlan:
    """Measure what ``harvest_layers`` would take, and write nothing.

    Raises what it would raise before its first row, CapacityError when disk or memory is not enough.
    """
    prepared = prepare(request)
    source = prepared.source
    finished = [layer for layer in request.layers if prepared.finished(layer)]
    missing = [layer for layer in request.layers if layer not in finished]
    size = prepared.geometry.size_bytes
    unembedding = bytes_beside(source, rows_bytes=size)
    deepest = max(missing, default=0)

    batch = 0
    speed = float("inf")
    placement: list[str] = []
    if missing:
        check_disk(prepared.minimum_bytes, [request.folders[layer] for layer in missing])
        placed = place_blocks(source, source.config_up_to(deepest), prepared.dtype, device=request.device)
        placement = in_words(placed, source, device=prepared.device, layers=deepest + 1)
        batch, speed = _time_batches(prepared, missing)

    settings = request.settings
    documents = count_held_out(prepared)
    rows = settings.train_tokens + settings.held_out_tokens
    return HarvestPlan(
        model=source.name,
        architecture=source.architecture,
        parameters=source.parameters,
        layers=request.layers,
        device=str(prepared.device),
        placement=placement,
        dtype=str(prepared.dtype).removeprefix("torch."),
        source=settings.source,
        target=settings.target,
        contexts_begin_with=prepared.tokenizer.beginning(settings.bos),
        train_rows=settings.train_tokens,
        held_out_rows=settings.held_out_tokens,
        bytes_per_layer=size,
        unembedding_bytes=unembedding,
        bytes_to_write=sum(missing_bytes(size + unembedding, request.folders[layer]) for layer in missing),
        free_disk_bytes=disk.free_bytes(request.folders[request.layers[0]]),
        weight_bytes=weight_bytes(source, prepared.dtype, layers=deepest + 1),
        peak_memory_bytes=_peak_memory(prepared, missing, batch_contexts=batch) if missing else None,
        free_memory_bytes=free_memory(prepared.device),
        batch_contexts=batch,
        tokens_per_second=speed,
        seconds=rows / request.world / speed,
        finished_layers=finished,
        held_out_documents=documents,
        advice=_advice(documents, settings),
    )


def _peak_memory(prepared: PreparedHarvest, layers: list[int], *, batch_contexts: int) -> int | None:
    """The memory of this process after its timed batches, and what a harvest adds: the other blocks and the logits of
    the model's own loss, batches that wait for the disk, and the rows of unfinished segments."""
    if prepared.device.type != "cpu":
        return None
    source = prepared.source
    request = prepared.request
    loads_all = has_room_for_all(source, prepared.dtype, device=request.device, processes=request.world)
    further = weight_bytes(source, prepared.dtype) - weight_bytes(source, prepared.dtype, layers=max(layers) + 1)
    logits = own_loss_bytes(source, prepared.dtype, context=prepared.settings.context)
    numbers = len(layers) * len(prepared.settings.sites) * source.width
    waiting = _WAITING_BATCHES * batch_contexts * prepared.settings.context * numbers * prepared.dtype.itemsize
    buffers = buffer_bytes(prepared.geometry, layers=len(layers))
    return peak_memory() + buffers + waiting + (further + logits) * loads_all


def count_held_out(prepared: PreparedHarvest, *, seconds: float = _COUNTED_SECONDS) -> int:
    """From how many documents the held-out rows will come.

    Reads the text and tokenises only held-out documents; after ``seconds`` the number is extrapolated. Raises
    UsageError when the text has not enough rows.
    """
    settings = prepared.settings
    cache = prepared.request.cache
    world = prepared.request.world
    wanted = settings.held_out_tokens / world
    rows = 0
    documents = 0
    started = time.perf_counter()
    for content, _ in prepared.documents.read(None):
        if is_held_out(document_bytes(content), fraction=cache.held_out_fraction, seed=cache.split_seed):
            tokens = prepared.tokenizer.count(content)
            rows += min(tokens, settings.held_out_document_tokens or tokens) + prepared.tokenizer.begins_with_bos
            documents += 1
        if rows >= wanted:
            break
        if time.perf_counter() - started > seconds and documents:
            return round(documents * wanted / rows) * world
    if rows < wanted and not settings.repeat:
        raise UsageError(
            f"The text is too short: its {documents} held-out documents have {rows:,} of the "
            f"{settings.held_out_tokens:,} rows that were asked for.",
            remedy="Lower harvest.held_out_tokens, raise harvest.held_out_document_tokens if it is set, or give more "
            "text.",
        )
    return documents * world


def _advice(documents: int, settings: HarvestSettings) -> list[str]:
    if documents >= _ENOUGH_DOCUMENTS:
        return []
    return [
        f"The held-out rows come from {documents} documents; intervals need at least {_ENOUGH_DOCUMENTS}. Raise "
        "harvest.held_out_tokens, give more or shorter documents, or set harvest.held_out_document_tokens to "
        f"{max(1, settings.held_out_tokens // _ENOUGH_DOCUMENTS)}."
    ]


def _time_batches(prepared: PreparedHarvest, layers: list[int]) -> tuple[int, float]:
    """Contexts in a batch, and tokens per second of the model, measured on the text of the run."""
    settings = prepared.settings
    model = load_found(prepared.source, device=prepared.request.device, dtype=settings.dtype, last_layer=max(layers))
    batch = choose_batch(model, settings, layers=len(layers))
    keys: list[Key] = [(layer, site) for layer in layers for site in settings.sites]
    forward = BatchForward(model, settings, keys)
    stream = iter(prepared.stream(batch_contexts=batch, cursor=None))
    started = time.perf_counter()
    rows = 0
    for number, text in zip(range(_TIMED_BATCHES), stream, strict=False):
        if number == 1:
            # The first batch is slower and not counted.
            started = time.perf_counter()
            rows = 0
        forward.run(text, Silent())
        finish(model.devices)
        rows += text.rows
        if time.perf_counter() - started > _TIMED_SECONDS:
            break
    return batch, max(rows, 1) / (time.perf_counter() - started)


def which_fit(free_bytes: int) -> dict[str, dict[str, Any]]:
    """For each model with a short name: the bytes of its weights in float32 and bfloat16, and whether they fit."""
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
