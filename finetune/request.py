"""The request for a fine-tuning."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.config import CacheSettings
from common.errors import UsageError
from common.run_layout import RunFolders
from evaluate.config import EvaluateSettings
from finetune.config import FinetuneSettings


@dataclass(frozen=True)
class FinetuneRequest:
    """What to fine-tune: the transcoder ``name`` of each layer's ``folders``, into ``result``, working in ``work``; the
    cross-layer transcoder ``name`` of all of them where ``joint`` is its folders."""

    folders: Mapping[int, RunFolders]
    name: str
    result: str
    work: Path
    lm: str
    device: str
    settings: FinetuneSettings
    evaluate: EvaluateSettings
    cache: CacheSettings
    joint: RunFolders | None = None

    def trained(self) -> dict[int, Path]:
        """The folders of the dictionaries to fine-tune, by layer."""
        return {layer: (self.joint or own).transcoder(self.name) for layer, own in self.folders.items()}

    def results(self) -> dict[int, Path]:
        """The folders of the result, by layer: the same folder for all layers of a cross-layer transcoder.

        Raises UsageError if the result would replace the original.
        """
        if self.result == self.name:
            raise UsageError(
                "The result would replace the dictionary that it is made from.", remedy="Give another name with --as."
            )
        return {layer: (self.joint or own).transcoder(self.result) for layer, own in self.folders.items()}
