"""What a run fine-tunes, from its files to its result: a dictionary for each layer, or one dictionary of several."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.open import open_cache
from cache.reader import CacheReader
from common.distributed import Ranks
from common.progress import Progress
from evaluate.held_out import open_held_out
from evaluate.memory import batch_rows_for
from evaluate.replay import Replay
from finetune.compare import LayerMeasures
from finetune.in_model import InModel
from finetune.request import FinetuneRequest
from finetune.tuned import Tuned
from transcoder.transcoder import Transcoder


class Subject(ABC):
    """``before`` is as it was trained; ``tuned`` are its pieces by layer, which change; ``current`` what they make."""

    def __init__(self, request: FinetuneRequest, *, device: str, progress: Progress) -> None:
        self.request = request
        self.device = device
        self.progress = progress
        self.before = self._load(request.trained())
        self.readers = {layer: self._open(layer) for layer in request.folders}
        self._check()
        self.tuned = {layer: self._begin(layer) for layer in request.folders}
        self.current = self._of_tuned()

    @abstractmethod
    def _load(self, folders: Mapping[int, Path]) -> InModel:
        """The dictionaries in the folders, on the device. Raises UsageError if a folder has none."""

    @abstractmethod
    def _check(self) -> None:
        """Raises MismatchError if the dictionaries do not belong to the caches."""

    @abstractmethod
    def _begin(self, layer: int) -> Tuned:
        """The piece of a layer."""

    @abstractmethod
    def _of_tuned(self) -> InModel:
        """The dictionaries made of the pieces, sharing their arrays."""

    @abstractmethod
    def weights(self) -> dict[str, Any]:
        """The seals of the files that are fine-tuned, by what they are of."""

    @abstractmethod
    def save(self, facts: Mapping[str, Any]) -> None:
        """Write the result, config.json last, with ``facts`` added to its earlier entries."""

    @abstractmethod
    def measured(self, dictionaries: InModel) -> dict[int, LayerMeasures]:
        """Every layer's metrics on its held-out rows."""

    def result(self) -> InModel:
        """What was saved."""
        return self._load(self.request.results())

    def _open(self, layer: int) -> CacheReader:
        return open_cache(
            self.request.folders[layer].cache,
            self.request.cache,
            device=self.device,
            column=self.before.pieces[layer].column,
        )

    def _replay(self, layer: int, piece: Transcoder) -> Replay:
        """Of a layer's held-out rows, in batches of the same rows in every process."""
        rows = Ranks.current().smallest(batch_rows_for(piece, self.device), self.device)
        return Replay(open_held_out(self.readers[layer]), rows, self.device, self.progress)
