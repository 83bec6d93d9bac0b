"""The local files of a dataset's name: a file, a folder, a glob, or a folder that ``save_to_disk`` wrote."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DamagedError, UsageError

KINDS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".arrow": "arrow"}
_GLOB_MARKS = "*?["
_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
"""A folder or file of one of these names has one split of a dataset, by the Hub's convention."""
_NUMBERED = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$")


@dataclass(frozen=True)
class LocalText:
    """The files in the order in which they are read, all of one kind."""

    files: tuple[Path, ...]
    kind: str
    left_out: int = 0
    """Files of a folder that are hidden or belong to another split."""


def find_local_text(name: str, *, split: str) -> LocalText | None:
    """The files of ``name``, or None if it does not look like a path (it may be a Hub dataset).

    Raises UsageError when it looks like a path and there are no files, or when the files are not all of one kind.
    """
    path = Path(name)
    left_out = 0
    if path.is_dir():
        files = _saved_dataset(path, split)
        if files is None:
            files, left_out = _in_folder(path, split)
    elif path.exists():
        files = [path]
    elif any(mark in name for mark in _GLOB_MARKS):
        anchor = Path(path.anchor)
        found = anchor.glob(str(path.relative_to(anchor)))
        files = sorted(match for match in found if match.is_file() and not match.name.startswith("."))
    else:
        files = []
    if files:
        return LocalText(tuple(files), kind=_common_kind(files, name), left_out=left_out)
    if _looks_local(name) or path.is_dir():
        raise UsageError(
            f"There is no text at '{name}'.",
            where=path.absolute(),
            remedy=f"Give a file, a folder or a glob of {', '.join(KINDS)}, 'stdlib', or a Hub dataset's name.",
        )
    return None


def kind_of(path: Path) -> str | None:
    """The kind of a file by its name, without ``.gz``; None for a file that is not read."""
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return KINDS.get(suffixes[-1]) if suffixes else None


def _looks_local(name: str) -> bool:
    starts_like_a_path = name.startswith((".", "/", "~"))
    return bool(kind_of(Path(name))) or starts_like_a_path or any(mark in name for mark in _GLOB_MARKS)


def _common_kind(files: list[Path], name: str) -> str:
    kinds = {kind_of(path) for path in files}
    kind = next(iter(kinds))
    if len(kinds) == 1 and kind is not None:
        return kind
    strange = next((path.name for path in files if not kind_of(path)), None)
    raise UsageError(
        f"'{strange}' is not a kind of file that is read." if strange else "The files are not all of one kind.",
        where=name,
        remedy=f"Give files of one kind: {', '.join(KINDS)} (also .gz).",
    )


def _in_folder(folder: Path, split: str) -> tuple[list[Path], int]:
    """The folder's files of the split, and how many were left out."""
    everything = sorted(path for path in folder.rglob("*") if path.is_file() and kind_of(path))
    visible = [path for path in everything if not _is_hidden(path.relative_to(folder))]
    by_split: dict[str | None, list[Path]] = {}
    for path in visible:
        by_split.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    wanted = _SPLITS.get(split, split)
    files = by_split.get(wanted, [] if set(by_split) - {None} and wanted != "train" else by_split.get(None, []))
    if not files and visible:
        there = ", ".join(sorted(name for name in by_split if name))
        raise UsageError(
            f"The folder has no files of the split '{split}'; it has: {there}.",
            where=folder,
            remedy="Set harvest.dataset_split, or give the folder of the split.",
        )
    return files, len(everything) - len(files)


def _is_hidden(relative: Path) -> bool:
    """Whether a file belongs to an editor or the system: .ipynb_checkpoints, ._name, .name."""
    return any(name.startswith(".") for name in relative.parts)


def _split_of(relative: Path) -> str | None:
    stem = _NUMBERED.sub("", relative.name.split(".")[0].lower())
    names = [*(folder.lower() for folder in relative.parts[:-1]), stem]
    return next((_SPLITS[name] for name in names if name in _SPLITS), None)


def _saved_dataset(folder: Path, split: str) -> list[Path] | None:
    """The Arrow files of a folder that ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote."""
    if (folder / "dataset_dict.json").is_file():
        if not (folder / split).is_dir():
            splits = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_dir()))
            raise UsageError(
                f"The saved dataset has no split '{split}'; it has: {splits}.",
                where=folder,
                remedy="Set harvest.dataset_split.",
            )
        folder = folder / split
    state = folder / "state.json"
    if not state.is_file() or not (folder / "dataset_info.json").is_file():
        return None
    try:
        described: Any = json.loads(state.read_bytes())
        names = [str(entry["filename"]) for entry in described["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise DamagedError("The saved dataset's state.json cannot be read.", where=state) from None
    if described.get("_indices_files"):
        raise UsageError(
            "The rows of the saved dataset are not in the order of its files.",
            where=folder,
            remedy="Call flatten_indices() before save_to_disk().",
        )
    return [folder / Path(name).name for name in names]
