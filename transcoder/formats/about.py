"""What a file of another tool says about a transcoder besides its arrays, and our own entries in it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transcoder.formats.sites import Site, hook_of
from transcoder.formats.wanted import OWN_WORDS


@dataclass(frozen=True)
class About:
    """A transcoder's place in its model, its training text, and ``record``: how the file was made and what was
    measured, which is written into the file's metadata."""

    model: str
    layer: int
    source_site: Site
    target_site: Site
    architecture: str = ""
    layers_of_model: int | None = None
    context: int | None = None
    begins_with_bos: bool = True
    dataset: str = ""
    record: Mapping[str, Any] | None = None

    @property
    def model_name(self) -> str:
        """The last part of the model's Hub name or folder, which is how TransformerLens calls models."""
        return self.model.rstrip("/").rpartition("/")[2]

    @property
    def is_autoencoder(self) -> bool:
        """Whether it reconstructs what it reads."""
        return self.source_site == self.target_site

    @property
    def source_hook(self) -> str:
        """TransformerLens's name of what the encoder reads."""
        return hook_of(self.source_site, self.layer)

    @property
    def target_hook(self) -> str:
        """TransformerLens's name of what is reconstructed."""
        return hook_of(self.target_site, self.layer)

    def words(self) -> dict[str, Any]:
        """``record`` under our name, as plain JSON."""
        return {OWN_WORDS: json.loads(json.dumps(self.record or {}))}

    def header(self) -> dict[str, str]:
        """The same for the header of a safetensors file, whose values are text."""
        return {OWN_WORDS: json.dumps(self.record or {}, sort_keys=True)}


def words_in(metadata: object) -> Mapping[str, Any]:
    """Our entries in the metadata of a file, given as mapping or as text; empty if there are none, or they are
    wrong."""
    words = metadata.get(OWN_WORDS) if isinstance(metadata, Mapping) else None
    if isinstance(words, str):
        try:
            words = json.loads(words)
        except (ValueError, RecursionError):
            return {}
    return words if isinstance(words, dict) else {}
