"""How many rows fit at a time."""

from common.device import free_memory
from transcoder.transcoder import Transcoder

# The estimate of a row's bytes is rough, and other processes need memory too.
_SHARE = 0.25
_LEAST = 64
_MOST_CPU = 2048
_MOST_GPU = 16384


def bytes_a_row(dictionary: Transcoder) -> int:
    """Pre-activations and their selection, the reconstructions and their float64 differences."""
    target_bytes = (4 * len(dictionary.prefixes) + 32) * dictionary.d_target
    return 4 * 3 * dictionary.dict_size + target_bytes + 32 * dictionary.d_source


def batch_rows_for(dictionary: Transcoder, device: str) -> int:
    """A power of two that leaves most of the free memory alone."""
    fitting = int(free_memory(device) * _SHARE) // bytes_a_row(dictionary)
    most = _MOST_GPU if device.startswith("cuda") else _MOST_CPU
    return max(_LEAST, min(most, 1 << max(0, fitting.bit_length() - 1)))
