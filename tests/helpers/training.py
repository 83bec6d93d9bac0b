"""A training of one layer as most tests want it: on the CPU, silent, without a mirror of its log."""

from pathlib import Path
from typing import Any

from common.progress import Progress, Silent
from train.config import LogSettings, TrainSettings
from train.run import train_layer


def train(
    cache: Path, out: Path, settings: TrainSettings, progress: Progress | None = None, **options: Any
) -> dict[str, Any]:
    """What ``train_layer`` returns; ``options`` are its other arguments."""
    given = {"device": "cpu", "fresh": False, "log": LogSettings()} | options
    return train_layer(cache=cache, out=out, settings=settings, progress=progress or Silent(), **given)


def changed(settings: TrainSettings, **values: Any) -> TrainSettings:
    """The settings with other values, checked again."""
    return TrainSettings.model_validate(settings.model_dump() | values)
