"""Where documents come from: the standard library, files on this disk, or the Hugging Face Hub, with an exact cursor.

A document is its text, or ready token ids. Ranks of a parallel harvest read disjoint documents.
"""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import xxhash

from common.errors import DiskError, UsageError
from harvest.config import HarvestSettings
from harvest.text.stdlib import stdlib_documents, stdlib_identity

Content = str | list[int]
_BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@runtime_checkable
class Documents(Protocol):
    """Documents in a fixed order."""

    def identity(self) -> dict[str, Any]:
        """What the text is, as JSON: part of the cache's fingerprint."""
        ...

    def read(self, state: Any) -> Iterator[tuple[Content, Any]]:
        """Yield each document and the state right after it; ``state`` None begins at the first document."""
        ...


def open_documents(settings: HarvestSettings, *, rank: int = 0, world: int = 1) -> Documents:
    """The documents that the settings name, or this rank's share of them.

    Raises UsageError when there is no such file or dataset, DiskError when the Hub cannot be reached.
    """
    if settings.dataset == "stdlib":
        return StdlibDocuments(rank=rank, world=world)
    files = _local_files(settings.dataset)
    if files:
        return _open_files(files, settings, rank=rank, world=world)
    return _open_hub(settings, rank=rank, world=world)


class StdlibDocuments:
    """The running interpreter's standard library; the state is the number of documents read."""

    def __init__(self, *, rank: int = 0, world: int = 1) -> None:
        self._rank = rank
        self._world = world

    def identity(self) -> dict[str, Any]:
        return {"kind": "stdlib", **asdict(stdlib_identity())}

    def read(self, state: Any) -> Iterator[tuple[Content, Any]]:
        done = state or 0
        for index, (_, text) in enumerate(stdlib_documents()):
            turn, owner = divmod(index, self._world)
            if owner == self._rank and turn >= done:
                yield text, turn + 1


class DatasetDocuments:
    """A streamed Hugging Face dataset; the state is its own ``state_dict``, exact because nothing is shuffled."""

    def __init__(self, dataset: Any, *, column: str, identity: dict[str, Any]) -> None:
        self._dataset = dataset
        self._column = column
        self._identity = identity

    def identity(self) -> dict[str, Any]:
        return self._identity

    def read(self, state: Any) -> Iterator[tuple[Content, Any]]:
        # A dataset without a state of its own would begin where the last reader of the object stopped.
        dataset = self._dataset.skip(0)
        if state is not None:
            dataset.load_state_dict(state)
        for row in dataset:
            if self._column not in row:
                raise UsageError(
                    f"The dataset has no column '{self._column}'; it has: {', '.join(map(str, row))}.",
                    where=self._identity.get("name", ""),
                    remedy="Set harvest.text_column, or harvest.tokens_column for ready token ids.",
                )
            yield _checked(row[self._column], self._column), dataset.state_dict()


def _checked(content: Any, column: str) -> Content:
    if content is None or isinstance(content, str | list):
        return content or ""
    raise UsageError(
        f"The column '{column}' holds {type(content).__name__}, which is neither text nor a list of token ids.",
        remedy="Set harvest.text_column, or harvest.tokens_column for ready token ids.",
    )


def _local_files(name: str) -> list[Path]:
    if any(mark in name for mark in "*?["):
        anchor = Path(Path(name).anchor)
        files = sorted(path for path in anchor.glob(str(Path(name).relative_to(anchor))) if path.is_file())
    elif Path(name).is_dir():
        files = sorted(path for path in Path(name).rglob("*") if _builder(path))
    else:
        files = [Path(name)] if Path(name).is_file() else []
    looks_local = bool(_builder(Path(name))) or name.startswith((".", "/", "~")) or any(mark in name for mark in "*?[")
    if not files and looks_local:
        raise UsageError(
            f"No text at '{name}'.",
            where=Path(name).absolute(),
            remedy=f"Give a file, a folder or a glob of {', '.join(_BUILDERS)}, 'stdlib', or a Hub dataset's name.",
        )
    return files


def _builder(path: Path) -> str | None:
    suffixes = [suffix for suffix in path.suffixes if suffix != ".gz"]
    return _BUILDERS.get(suffixes[-1]) if suffixes else None


def _open_files(files: list[Path], settings: HarvestSettings, *, rank: int, world: int) -> DatasetDocuments:
    from datasets import load_dataset

    kinds = {_builder(path) for path in files}
    if len(kinds) != 1 or None in kinds:
        strange = next((path.name for path in files if not _builder(path)), None)
        raise UsageError(
            f"'{strange}' is no kind of text that is read." if strange else "The files are not all of one kind.",
            where=settings.dataset,
            remedy=f"Give files of one kind: {', '.join(_BUILDERS)} (also .gz).",
        )
    kind = str(kinds.pop())
    more = (
        {"sample_by": {"file": "document"}.get(settings.txt_document, settings.txt_document)} if kind == "text" else {}
    )
    paths = {"train": [str(path) for path in files]}
    dataset = cast("Any", load_dataset)(kind, data_files=paths, split="train", streaming=True, **more)
    column = "text" if kind == "text" else settings.tokens_column or settings.text_column
    return DatasetDocuments(_share(dataset, rank, world), column=column, identity=_files_identity(files, column, more))


def _files_identity(files: list[Path], column: str, more: dict[str, str]) -> dict[str, Any]:
    digest = xxhash.xxh3_128()
    size = 0
    for path in files:
        with path.open("rb") as file:
            while piece := file.read(1 << 22):
                digest.update(piece)
                size += len(piece)
    names = [path.name for path in files]
    name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    return {"kind": "files", "name": name, "files": len(files), "bytes": size, "hash": digest.hexdigest(),
            "column": column, **more}  # fmt: skip


def _open_hub(settings: HarvestSettings, *, rank: int, world: int) -> DatasetDocuments:
    from datasets import load_dataset
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    name = settings.dataset
    page = f"https://huggingface.co/datasets/{settings.dataset}"
    column = settings.tokens_column or settings.text_column
    try:
        commit = HfApi().dataset_info(name, revision=settings.dataset_revision).sha
        dataset = load_dataset(
            name, settings.dataset_config, split=settings.dataset_split, revision=commit, streaming=True
        )
    except GatedRepoError:
        raise UsageError(
            f"'{name}' asks for a licence: accept it at {page}, then run `hf auth login` or set HF_TOKEN.",
            where=page,
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UsageError(f"No file, folder or Hub dataset is called '{name}'.", where=page) from None
    except ValueError as error:
        raise UsageError(f"The dataset '{name}' cannot be opened: {error}", where=page) from None
    except Exception as error:
        raise DiskError(
            f"The dataset '{name}' cannot be reached: {type(error).__name__}.",
            where=page,
            remedy="Connect, or harvest local files or 'stdlib', which need no network.",
        ) from None
    identity = {"kind": "hub", "name": name, "config": settings.dataset_config, "split": settings.dataset_split,
                "revision": commit, "column": column}  # fmt: skip
    return DatasetDocuments(_share(dataset, rank, world), column=column, identity=identity)


def _share(dataset: Any, rank: int, world: int) -> Any:
    from datasets.distributed import split_dataset_by_node

    return split_dataset_by_node(dataset, rank=rank, world_size=world) if world > 1 else dataset
