"""What a harvest is: everything that determines a cache's bytes, as the plain JSON that its fingerprint is made of."""

import posixpath
from typing import Any

import numpy as np
import torch

from harvest.config import HarvestSettings
from harvest.model import ModelFolder, ModelTokenizer
from harvest.sites import Norm
from harvest.text import Documents


def cache_identity(
    where: ModelFolder,
    tokenizer: ModelTokenizer,
    documents: Documents,
    *,
    settings: HarvestSettings,
    layer: int,
    dtype: torch.dtype,
    ranks: int,
) -> dict[str, Any]:
    """Model, text, cut and sites. Left out is what moves rounding alone: device, batch and attention kernel."""
    return {
        "model": posixpath.normpath(where.name),
        "model_revision": where.revision,
        "model_parameters": where.parameters,
        "weights_hash": where.weights_hash,
        "tokenizer_hash": tokenizer.hash,
        "architecture": where.architecture,
        "model_dtype": str(dtype).removeprefix("torch."),
        "layer": layer,
        "layers_of_model": where.layers,
        "source_site": settings.source,
        "target_site": settings.target,
        "context": settings.context,
        "packing": settings.packing,
        "attention": settings.attention,
        "bos": tokenizer.bos,
        "dataset": documents.identity(),
        "repeat": settings.repeat,
        "ranks": ranks,
    }


def cache_arrays(tokenizer: ModelTokenizer, norm: Norm) -> dict[str, np.ndarray]:
    """What is stored beside the rows: the norm's gain and bias, and the tokenizer that turns tokens into text."""
    return {
        "gain": norm.gain.cpu().numpy(),
        "bias": norm.bias.cpu().numpy(),
        "tokenizer.json": np.frombuffer(tokenizer.json.encode(), dtype=np.uint8),
    }
