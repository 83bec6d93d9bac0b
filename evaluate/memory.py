"""How many rows fit at a time."""

from common.device import free_memory
from transcoder.transcoder import Transcoder

# The estimate of a row's bytes is rough, and other processes need memory too.
_SHARE = 0.25
_MIN_ROWS = 64
"""If so many rows do not fit either, batches are halved."""
_MAX_ROWS_CPU = 2048
"""Enough rows for fast products."""
_MAX_ROWS_GPU = 16384
"""Enough rows for fast products on a GPU."""


def bytes_a_row(dictionary: Transcoder) -> int:
    """Pre-activations and their selection, the reconstructions and their float64 differences."""
    target_bytes = (4 * len(dictionary.prefixes) + 32) * dictionary.d_target
    return 4 * 3 * dictionary.dict_size + target_bytes + 32 * dictionary.d_source


def batch_rows_for(dictionary: Transcoder, device: str) -> int:
    """A power of two that leaves most of the free memory alone."""
    fitting = int(free_memory(device) * _SHARE) // bytes_a_row(dictionary)
    limit = _MAX_ROWS_GPU if device.startswith("cuda") else _MAX_ROWS_CPU
    return max(_MIN_ROWS, min(limit, 1 << max(0, fitting.bit_length() - 1)))
