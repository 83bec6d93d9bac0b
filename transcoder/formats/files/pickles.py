"""PyTorch's own files, which are pickles: the only place that opens one.

``torch.load(weights_only=True)`` builds tensors, numbers, text, lists and dictionaries, and calls nothing that a file
names. In addition, there is a limit on the file's size, a list of allowed names, and tensors must be floats. Some tools
store a configuration object beside the tensors: it is read into an empty class of ours (``Settings``), so its
attributes can be read, and its code does not exist here.
"""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import DamagedError, DiskError, MismatchError, UsageError
from common.units import in_bytes

LIMIT_BYTES = 16 << 30
"""Larger than any single dictionary that is published."""


class Settings:
    """What stands in for a configuration object of another tool: its attributes, and nothing else of it."""


def read_tensors_of_pickle(
    path: Path, *, names: set[str], optional: frozenset[str] = frozenset(), limit_bytes: int = LIMIT_BYTES
) -> dict[str, Tensor]:
    """The tensors ``names``, and those of ``optional`` that are there, of a file that holds one dictionary of tensors.

    UsageError: no such file. DamagedError: no such dictionary. MismatchError: names that are not known, or a file
    beyond ``limit_bytes``, or one that asks for code.
    """
    return tensors_among(read_pickle(path, limit_bytes=limit_bytes), names=names, optional=optional, path=path)


def read_pickle(path: Path, *, stand_ins: tuple[str, ...] = (), limit_bytes: int = LIMIT_BYTES) -> Any:
    """What a file holds. ``stand_ins``: full names of classes that ``Settings`` takes the place of. Raises as above."""
    if not path.is_file():
        raise UsageError("There is no such file.", where=path)
    size = path.stat().st_size
    if size > limit_bytes:
        what = f"The file has {in_bytes(size)}; at most {in_bytes(limit_bytes)} are opened."
        raise MismatchError(what, where=path)
    allowed: list[Any] = [(type("Settings", (Settings,), {}), name) for name in stand_ins]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of another pickle protocol: it is read, or refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = f"The file has more than tensors and numbers in it, so it is not opened: {_first_sentence(error)}"
        remedy = "If you trust the file, load it with its own tool and save only its state_dict."
        raise MismatchError(what, where=path, remedy=remedy) from error
    except (RuntimeError, ValueError, KeyError, EOFError, TypeError, AttributeError, IndexError) as error:
        raise DamagedError(f"Not a readable PyTorch file: {_first_sentence(error)}", where=path) from error
    except OSError as error:
        raise DiskError(f"The file cannot be read: {error}.", where=path) from error


def tensors_among(
    found: object, *, names: set[str], optional: frozenset[str] = frozenset(), path: Path
) -> dict[str, Tensor]:
    """``found`` as a dictionary of tensors with these names. Raises DamagedError or MismatchError."""
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise DamagedError(f"A dictionary of tensors was expected, not {type(found).__name__}.", where=path)
    if unknown := sorted(str(name) for name in found if name not in names | optional):
        what = f"The file also has {', '.join(unknown[:8])}, which this format does not have."
        raise MismatchError(what, where=path)
    if missing := sorted(names - set(found)):
        raise DamagedError(f"The file has no tensor {', '.join(missing)}; it has {sorted(found)}.", where=path)
    for name, value in found.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
            raise DamagedError(f"{name} is not a plain tensor.", where=path)
    return {str(name): value.detach() for name, value in found.items()}


def _first_sentence(error: Exception) -> str:
    """The beginning of PyTorch's message, which goes on with advice to trust the file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), lines[0] if lines else "empty")
    return reason.split(" Please use ")[0][:300].rstrip(".") + "."
