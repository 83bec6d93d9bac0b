"""A model's folder on disk: the headers of its safetensors files, and files that must not be in it."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from common.errors import DamagedError, UsageError

_LFS_POINTER = b"version https://git-lfs"
_MERGE = (
    "Merge it first: PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(new_folder). "
    "To harvest the model without the adapter, move the adapter's files to another folder."
)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads, by name; some repositories have the weights a second time."""
    return sorted(path for path in folder.glob("model*.safetensors") if path.is_file())


def check_folder(folder: Path) -> None:
    """Check that the folder has complete weights and no adapter.

    Raises UsageError for an adapter, DamagedError for weights that are missing or in another file format.
    """
    adapters = sorted(path.name for path in folder.glob("adapter_*") if path.is_file())
    if adapters:
        what = f"There is an adapter in the model's folder: {', '.join(adapters)}."
        raise UsageError(what, where=folder, remedy=_MERGE)
    files = weight_files(folder)
    if not files:
        raise DamagedError(
            "The model has no weights in model*.safetensors, and no other file format is read.",
            where=folder,
            remedy="Convert it: AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder).",
        )
    missing = sorted(_named_by_index(folder) - {path.name for path in files})
    if missing:
        raise DamagedError(
            f"{len(missing)} of the weight files in the index are missing: {', '.join(missing[:3])}.",
            where=folder,
            remedy="Copy or download them again.",
        )


def _named_by_index(folder: Path) -> set[str]:
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return set()
    try:
        return {str(name) for name in json.loads(path.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedError("The index of the weight files cannot be read.", where=path) from None


def stored_weights(path: Path) -> Iterator[tuple[str, int]]:
    """Name and number of elements of every tensor in a safetensors file, from its header.

    Raises DamagedError for a git-lfs pointer, a cut file, or a header that cannot be read.
    """
    try:
        header, data_bytes = _read_header(path)
        tensors = {name: about for name, about in header.items() if name != "__metadata__"}
        sizes = {name: int(torch.Size(about["shape"]).numel()) for name, about in tensors.items()}
        end = max((int(about["data_offsets"][1]) for about in tensors.values()), default=0)
    except OSError as error:
        raise DamagedError(f"The weights cannot be read: {error.strerror}.", where=path) from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, struct.error, RuntimeError):
        raise DamagedError(
            "The header of the weights cannot be read.", where=path, remedy="Copy or download the file again."
        ) from None
    if end > data_bytes:
        raise DamagedError(
            f"The weights are cut: the file ends {end - data_bytes:,} bytes early.",
            where=path,
            remedy="Copy or download the file again.",
        )
    yield from sizes.items()


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and how many bytes of tensors follow it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise DamagedError(
                "This file is a git-lfs pointer, not the weights themselves.",
                where=path,
                remedy="Run 'git lfs pull' in the folder.",
            )
        # 8 bytes with the length of the header, then the header.
        (header_bytes,) = struct.unpack("<Q", start[:8])
        if header_bytes > size - 8:
            raise ValueError("the header is longer than the file")
        file.seek(8)
        header = json.loads(file.read(header_bytes))
    return header, size - 8 - header_bytes
