"""Memory and disk arithmetic: what weights and tokens take, how many contexts fit, whether the caches fit."""

from pathlib import Path

import torch

from cache.format.dtypes import TORCH_DTYPES, read_as
from cache.format.layout import Geometry
from cache.storage.draft import DRAFTS
from common import disk
from common.device import free_memory
from common.errors import CapacityError
from harvest.compat import attention_name
from harvest.config import HarvestSettings
from harvest.model.language_model import LanguageModel
from harvest.model.own_loss import MOST_POSITIONS, POSITIONS_AT_ONCE
from harvest.model.source import ModelSource

_CPU_TOKENS = 4096
"""Tokens of a batch on a CPU, where a larger one is no faster."""
_GPU_TOKENS = 65_536
"""Tokens of a batch on a GPU at the most: enough to keep any card busy."""
UNWRITTEN_BATCHES = 2
"""Batches that wait for the disk: each holds every kept tensor, so memory bounds them."""
_BATCHES_AT_ONCE = UNWRITTEN_BATCHES + 2
"""Batches whose kept rows a device holds at once: with the ones that wait, one in the model and one being dealt."""
_FREE_SHARE = 0.5
"""The share of free GPU memory that activations may take; kernels' workspaces and fragments want the rest."""


def weight_bytes(source: ModelSource, dtype: torch.dtype, *, layers: int | None = None) -> int:
    """Bytes of the weights in ``dtype``, or of those outside the blocks and in the first ``layers`` of them."""
    return source.parameters_up_to((layers or source.layers) - 1) * dtype.itemsize


def token_bytes(source: ModelSource, dtype: torch.dtype, *, context: int, sites: int, eager: bool) -> int:
    """Bytes that one token takes at the peak: a block's intermediates, the kept sites, eager attention's scores."""
    config = source.config
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * source.width
    scores = 3 * int(config.num_attention_heads) * context * 4 if eager else 0
    return (8 * source.width + 3 * int(inner) + sites * source.width) * dtype.itemsize + scores


def choose_batch(model: LanguageModel, settings: HarvestSettings, *, layers: int) -> int:
    """Contexts a batch: what the settings say, or as many as keep the device busy and fit in its free memory.

    Raises CapacityError when not even one context fits.
    """
    if settings.batch_contexts:
        return settings.batch_contexts
    if model.device.type != "cuda":
        return max(1, _CPU_TOKENS // settings.context)
    eager = attention_name(model.hugging) == "eager"
    sites = 2 * layers * _BATCHES_AT_ONCE
    each = token_bytes(model.source, model.dtype, context=settings.context, sites=sites, eager=eager)
    free = min(free_memory(device) for device in model.devices)
    fits = int(free * _FREE_SHARE) // (each * settings.context)
    if not fits:
        raise CapacityError(
            f"One context of {settings.context} tokens needs about {each * settings.context / 1e9:.1f} GB; "
            f"{free / 1e9:.1f} GB are free on {model.device}.",
            remedy="Lower harvest.context, choose harvest.dtype bfloat16, or free the device.",
        )
    return min(fits, max(1, _GPU_TOKENS // settings.context))


def missing_bytes(cache_bytes: int, folder: Path) -> int:
    """Bytes that a cache of ``cache_bytes`` in ``folder`` still lacks."""
    files = folder.rglob("*") if folder.exists() else ()
    present = sum(disk.size_bytes(path) for path in files if path.is_file() and path.parent.name != DRAFTS)
    return max(0, cache_bytes - present)


def buffer_bytes(geometry: Geometry, *, layers: int) -> int:
    """Bytes of the rows that wait in memory for their segments to be full."""
    numbers = geometry.d_source + geometry.d_target
    rows = sum(min(group.segment_rows, group.rows) for group in geometry.groups.values())
    return layers * rows * numbers * TORCH_DTYPES[read_as(geometry.dtype)].itemsize


def own_loss_bytes(source: ModelSource, dtype: torch.dtype, *, context: int) -> int:
    """Bytes that the language model's own loss takes: one context's logits, and some of them in float32, twice."""
    positions = min(context, MOST_POSITIONS)
    return source.vocabulary * (positions * dtype.itemsize + 2 * POSITIONS_AT_ONCE * torch.float32.itemsize)


def check_disk(cache_bytes: int, folders: list[Path]) -> None:
    """Raise CapacityError when the disk has no room for what the caches of ``cache_bytes`` each still lack."""
    needed = sum(missing_bytes(cache_bytes, folder) for folder in folders)
    free = disk.free_bytes(folders[0])
    if needed > free:
        raise CapacityError(
            f"The caches need {needed / 1e9:.2f} GB more; {free / 1e9:.2f} GB are free.",
            where=folders[0],
            remedy="Lower harvest.train_tokens, harvest fewer layers at once, or put 'runs' on a larger disk.",
        )
