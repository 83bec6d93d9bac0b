"""Memory and disk: how much weights and tokens take, how many contexts fit, whether the caches fit."""

from pathlib import Path

import torch

from cache.format.dtypes import TORCH_DTYPES, read_as
from cache.format.layout import Geometry
from cache.storage.draft import DRAFTS
from common import disk
from common.device import free_memory
from common.errors import CapacityError
from common.units import in_bytes
from harvest.compat import attention_name
from harvest.config import HarvestSettings
from harvest.model.language_model import LanguageModel
from harvest.model.own_loss import BLOCK_POSITIONS, POSITIONS_LIMIT
from harvest.model.source import ModelSource

_CPU_TOKENS = 4096
"""Tokens of a batch on a CPU; a larger batch is not faster."""
_GPU_TOKENS = 65_536
"""The most tokens of a batch on a GPU: enough to keep any card busy."""
UNWRITTEN_BATCHES = 2
"""Batches that may wait for the disk. Each keeps all of its tensors in memory, so there are few."""
_BATCHES_IN_MEMORY = UNWRITTEN_BATCHES + 2
"""Batches whose rows are on a device at once: those that wait, one in the model and one that is being written."""
_FREE_SHARE = 0.5
"""The share of free GPU memory for activations; the rest is for the kernels' workspaces and for fragmentation."""


def weight_bytes(source: ModelSource, dtype: torch.dtype, *, layers: int | None = None) -> int:
    """Bytes of the weights in ``dtype``: all, or those outside the blocks and in the first ``layers`` blocks."""
    return source.parameters_up_to((layers or source.layers) - 1) * dtype.itemsize


def token_bytes(source: ModelSource, dtype: torch.dtype, *, context: int, sites: int, eager: bool) -> int:
    """Bytes that one token takes at the peak: a block's intermediates, the stored sites, eager attention's scores."""
    # An estimate of what a block has at its peak: 8 tensors of the model's width, 3 of the MLP's, and with eager
    # attention 3 of all scores in float32.
    config = source.config
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * source.width
    scores = 3 * int(config.num_attention_heads) * context * 4 if eager else 0
    return (8 * source.width + 3 * int(inner) + sites * source.width) * dtype.itemsize + scores


def choose_batch(model: LanguageModel, settings: HarvestSettings, *, layers: int) -> int:
    """Contexts in a batch: as set, or as many as keep the device busy and fit in its free memory.

    Raises CapacityError when not even one context fits.
    """
    if settings.batch_contexts:
        return settings.batch_contexts
    if model.device.type != "cuda":
        return max(1, _CPU_TOKENS // settings.context)
    eager = attention_name(model.hugging) == "eager"
    sites = 2 * layers * _BATCHES_IN_MEMORY
    each = token_bytes(model.source, model.dtype, context=settings.context, sites=sites, eager=eager)
    free = min(free_memory(device) for device in model.devices)
    fits = int(free * _FREE_SHARE) // (each * settings.context)
    if not fits:
        raise CapacityError(
            f"One context of {settings.context} tokens needs about {in_bytes(each * settings.context)}; "
            f"{in_bytes(free)} are free on {model.device}.",
            remedy="Lower harvest.context, choose harvest.dtype bfloat16, or free the device.",
        )
    return min(fits, max(1, _GPU_TOKENS // settings.context))


def missing_bytes(cache_bytes: int, folder: Path) -> int:
    """Bytes that are still missing of a cache of ``cache_bytes`` in ``folder``."""
    files = folder.rglob("*") if folder.exists() else ()
    present = sum(disk.size_bytes(path) for path in files if path.is_file() and path.parent.name != DRAFTS)
    return max(0, cache_bytes - present)


def buffer_bytes(geometry: Geometry, *, layers: int) -> int:
    """Bytes of the rows that wait in memory until their segments are full."""
    numbers = geometry.d_source + geometry.d_target
    rows = sum(min(group.segment_rows, group.rows) for group in geometry.groups.values())
    return layers * rows * numbers * TORCH_DTYPES[read_as(geometry.dtype)].itemsize


def own_loss_bytes(source: ModelSource, dtype: torch.dtype, *, context: int) -> int:
    """Bytes for measuring the language model's own loss: one context's logits, and a block of them twice in float32."""
    positions = min(context, POSITIONS_LIMIT)
    return source.vocabulary * (positions * dtype.itemsize + 2 * BLOCK_POSITIONS * torch.float32.itemsize)


def check_disk(cache_bytes: int, folders: list[Path]) -> None:
    """Raise CapacityError when the disk has no room for the missing bytes of caches of ``cache_bytes`` each."""
    needed = sum(missing_bytes(cache_bytes, folder) for folder in folders)
    free = disk.free_bytes(folders[0])
    if needed > free:
        raise CapacityError(
            f"The caches need {in_bytes(needed)} more; {in_bytes(free)} are free.",
            where=folders[0],
            remedy="Lower harvest.train_tokens, harvest fewer layers at once, or put runs on a larger disk.",
        )
