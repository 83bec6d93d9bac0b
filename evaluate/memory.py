"""How many rows fit at a time."""

from common.device import free_memory
from transcoder.dictionary import Dictionary

_SHARE = 0.25
_LEAST, _MOST_CPU, _MOST_GPU = 64, 2048, 16384


def bytes_a_row(dictionary: Dictionary) -> int:
    """Pre-activations and their selection, the reconstructions and their float64 differences."""
    d_source, d_target = dictionary.weights.W_enc.shape[0], dictionary.weights.W_dec.shape[1]
    return 4 * 3 * dictionary.dict_size + (4 * len(dictionary.prefixes) + 32) * d_target + 32 * d_source


def batch_rows_for(dictionary: Dictionary, device: str) -> int:
    """A power of two that leaves most of the free memory alone."""
    fitting = int(free_memory(device) * _SHARE) // bytes_a_row(dictionary)
    most = _MOST_GPU if device.startswith("cuda") else _MOST_CPU
    return max(_LEAST, min(most, 1 << max(0, fitting.bit_length() - 1)))
