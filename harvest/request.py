"""The request for a harvest: the model, the layers and their folders, the settings, and this process's share."""

from dataclasses import dataclass, field
from pathlib import Path

from cache.config import CacheSettings
from harvest.config import HarvestSettings


@dataclass(frozen=True)
class HarvestRequest:
    """Built once by the caller and passed on; ``harvest.prepare`` finds its model and opens its text.

    ``model`` is a folder, a Hub name or an alias. ``folders`` names the folder of each layer's cache. ``rank`` of
    ``world`` processes reads its share of the text and commits its share of the rows.
    """

    model: str
    folders: dict[int, Path]
    settings: HarvestSettings = field(default_factory=HarvestSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    device: str = "auto"
    rank: int = 0
    world: int = 1

    @property
    def layers(self) -> list[int]:
        """The layers to harvest, in the order of ``folders``."""
        return list(self.folders)
