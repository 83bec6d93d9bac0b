"""The blocks of several processes in one list: every process sends what it encoded to all others, array by array.

Arrays of one dtype are sent as one array, padded to the longest of all processes, because an exchange needs equal
shapes.
"""

from dataclasses import fields

import numpy as np
import torch
from jaxtyping import Shaped

from common.distributed import Ranks
from evaluate.features.code import CodeBlock

_PER_ENTRY = ("row", "feature", "value", "lost", "lost_prefix")
_PER_BLOCK = ("start", "tokens", "target_sum", "target_square", "error_square")
assert {*_PER_ENTRY, *_PER_BLOCK} == {field.name for field in fields(CodeBlock)}


def share_of(starts: list[int], ranks: Ranks) -> list[int]:
    """The blocks that this process encodes."""
    return starts[ranks.rank :: ranks.world]


def gathered(blocks: list[CodeBlock], ranks: Ranks, *, device: str) -> list[CodeBlock]:
    """Every process's blocks, the same in all processes. Raises DiskError if a process has ended."""
    if ranks.world == 1:
        return blocks
    counts = _everyones(np.array([len(block.row) for block in blocks], dtype=np.int64), ranks, device)
    columns = {name: _everyones(_joined(blocks, name), ranks, device) for name in (*_PER_ENTRY, *_PER_BLOCK)}
    found: list[CodeBlock] = []
    for rank, lengths in enumerate(counts):
        own = {name: arrays[rank] for name, arrays in columns.items()}
        found += _blocks(own, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    return found


def _joined(blocks: list[CodeBlock], name: str) -> np.ndarray:
    values = [np.asarray(getattr(block, name)) for block in blocks]
    if name in _PER_ENTRY:
        return np.concatenate(values) if values else np.zeros(0, dtype=_EMPTY[name])
    return np.stack(values) if values else np.zeros(0)


_EMPTY = {"row": np.int32, "feature": np.int32, "value": np.float32, "lost": np.float32, "lost_prefix": np.float32}


def _blocks(own: dict[str, np.ndarray], offsets: np.ndarray) -> list[CodeBlock]:
    return [
        CodeBlock(
            start=int(own["start"][block]),
            tokens=int(own["tokens"][block]),
            target_sum=own["target_sum"][block],
            target_square=float(own["target_square"][block]),
            error_square=own["error_square"][block],
            **{name: own[name][offsets[block] : offsets[block + 1]] for name in _PER_ENTRY},
        )
        for block in range(len(offsets) - 1)
    ]


def _everyones(array: Shaped[np.ndarray, "..."], ranks: Ranks, device: str) -> list[Shaped[np.ndarray, "..."]]:
    """Every process's array. Processes may have different lengths, and none at all."""
    # A process without blocks does not know widths and dtypes, so the largest of each is agreed on first.
    width = ranks.largest(array.shape[1] if array.ndim > 1 else 0, device)
    length = ranks.largest(len(array), device)
    is_whole = ranks.total(int(len(array) > 0 and array.dtype.kind == "i"), device) > 0
    kind = np.int64 if is_whole else np.float64
    padded = np.zeros((length, width) if width else (length,), dtype=kind)
    padded[: len(array)] = array if len(array) else padded[:0]
    lengths = ranks.gathered(torch.tensor(len(array), device=device)).tolist()
    gathered = ranks.gathered(torch.from_numpy(padded).to(device)).cpu().numpy()
    dtype = array.dtype if len(array) else kind
    return [values[:count].astype(dtype) for values, count in zip(gathered, lengths, strict=True)]
