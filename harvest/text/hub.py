"""A dataset on the Hugging Face Hub, streamed: pinned to a commit, tried again when the stream drops."""

import time
from collections.abc import Iterator
from typing import Any, cast

from common.errors import DiskError, NestcoderError, UsageError
from common.hub_errors import hub_errors, hub_problem, page_of
from harvest.config import HarvestSettings
from harvest.text.rows import NAMED_LIMIT, SKIP, BadRowError, Content, RowReader, TextAccess

_REMEDY = "Connect to the network, or harvest local files or 'stdlib', which need none."
_TRIES = 5
_FIRST_WAIT_SECONDS = 2.0
"""A stream that drops is tried again after 2, 4, 8, 16 and 32 seconds; after a row the count begins at 0 again."""


class HubDocuments:
    """A streamed Hugging Face dataset; the state is its own ``state_dict``, exact because nothing is shuffled."""

    def __init__(
        self, dataset: Any, settings: HarvestSettings, row_reader: RowReader, access: TextAccess, commit: str | None
    ) -> None:
        self._dataset = dataset
        self._settings = settings
        self._row_reader = row_reader
        self._note = access.note
        self._commit = commit
        self.skipped_rows = 0
        """How many rows were left out so far, from the beginning of the text."""
        self.skipped: dict[str, str] = {}
        """Why the first of them were left out, by row."""

    def identity(self) -> dict[str, Any]:
        """The dataset, its configuration, split, column and commit."""
        settings = self._settings
        identity = {
            "kind": "hub",
            "name": settings.dataset,
            "config": settings.dataset_config,
            "split": settings.dataset_split,
            "revision": self._commit,
            "column": self._row_reader.column,
        }
        if self._row_reader.form == "messages":
            identity["form"] = "messages"
        if settings.bad_rows == "skip":
            identity["bad_rows"] = "skip"
        return identity

    def read(self, state: Any) -> Iterator[tuple[Content, Any]]:
        """The rows of the stream; the state is that of the dataset, and how many rows were read.

        Raises UsageError for a row that cannot be used, unless the settings skip such rows, and DiskError when the Hub
        cannot be reached.
        """
        self.skipped_rows = int((state or {}).get("skipped", 0))
        for number, row, following in self._rows(state):
            try:
                content = self._row_reader.content(row)
            except BadRowError as bad:
                location = f"{self._settings.dataset}, row {number}"
                if self._settings.bad_rows == "skip":
                    self.skipped_rows += 1
                    if len(self.skipped) < NAMED_LIMIT:
                        self.skipped[location] = bad.why
                    continue
                raise UsageError(
                    f"A row of the text cannot be used: {bad.why}.",
                    where=location,
                    remedy=f"{bad.remedy} {SKIP}".strip(),
                ) from None
            yield content, following | {"skipped": self.skipped_rows}

    def _rows(self, state: Any) -> Iterator[tuple[int, Any, dict[str, Any]]]:
        """Every row, its number, and the state after it; a dropped stream goes on where it was."""
        # Caches that were begun before rows were counted have only the dataset's state.
        counted = state if state is None or "rows" in state else {"rows": 0, "dataset": state}
        number = counted["rows"] if counted else 0
        here = counted["dataset"] if counted else None
        failures = 0
        while True:
            # skip(0) makes a new object: the old one would begin where its last reader stopped.
            dataset = self._dataset.skip(0)
            if here is not None:
                dataset.load_state_dict(here)
            try:
                for row in dataset:
                    number += 1
                    here = dataset.state_dict()
                    failures = 0
                    yield number, row, {"rows": number, "dataset": here}
                return
            except NestcoderError:
                raise
            except Exception as error:
                problem = _stream_problem(error, self._settings.dataset, number)
                failures += 1
                if not isinstance(problem, DiskError) or failures > _TRIES:
                    raise problem from None
                wait = _FIRST_WAIT_SECONDS * 2 ** (failures - 1)
                self._note(
                    f"The stream of '{self._settings.dataset}' dropped ({type(error).__name__}): "
                    f"try {failures} of {_TRIES} in {wait:.0f} s."
                )
                time.sleep(wait)


def _stream_problem(error: Exception, name: str, rows: int) -> NestcoderError:
    """UsageError for a file that cannot be read, which is a fault of the dataset; DiskError for the network."""
    names = {base.__name__ for base in type(error).__mro__}
    if names & {"CastError", "ArrowException", "ArrowInvalid", "DatasetGenerationError", "UnicodeDecodeError"}:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return UsageError(
            f"A file of the dataset '{name}' cannot be read after row {rows}: {lines[0].rstrip('.')}.",
            where=page_of("dataset", name),
            remedy="Download the dataset and give its files; leave this one out.",
        )
    return hub_problem(error, "dataset", name, remedy=_REMEDY)


def open_hub(settings: HarvestSettings, row_reader: RowReader, access: TextAccess) -> HubDocuments:
    """The Hub's dataset of that name at the present commit of the revision.

    Raises UsageError for a name, revision, configuration or split that does not exist, DiskError without a network.
    """
    from datasets import load_dataset
    from huggingface_hub import HfApi

    name = settings.dataset
    with hub_errors("dataset", name, revision=settings.dataset_revision, remedy=_REMEDY):
        commit = HfApi().dataset_info(name, revision=settings.dataset_revision).sha
        dataset = cast("Any", load_dataset)(
            name, settings.dataset_config, split=settings.dataset_split, revision=commit, streaming=True
        )
    return HubDocuments(_share(dataset, access), settings, row_reader, access, commit)


def _share(dataset: Any, access: TextAccess) -> Any:
    from datasets.distributed import split_dataset_by_node

    if access.world == 1:
        return dataset
    return split_dataset_by_node(dataset, rank=access.rank, world_size=access.world)
