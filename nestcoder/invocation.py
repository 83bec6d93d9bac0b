"""One call of the command line: its settings, the folders of its runs, and how its result is printed."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from common import disk
from nestcoder.text import printable

if TYPE_CHECKING:
    from common.run_layout import RunFolders
    from nestcoder.config import PipelineSettings


@dataclass(frozen=True)
class CommandResult:
    """The result of a command: ``data`` for ``--json``, ``text`` for people."""

    data: Any
    text: str


class Invocation:
    """The options before the command; the settings file is read when a command first needs it."""

    def __init__(self, config: Path | None, overrides: list[str], as_json: bool) -> None:
        self._config = config
        self._overrides = overrides
        self._as_json = as_json

    @cached_property
    def settings(self) -> "PipelineSettings":
        """The settings of pipeline.yaml (or ``--config``) with the overrides of ``--set``. Raises UsageError."""
        from nestcoder.config import load_settings

        usual = Path("pipeline.yaml")
        settings = load_settings(self._config or (usual if usual.exists() else None), self._overrides)
        disk.accept_weak_disk(settings.cache.weak_disk)
        return settings

    def folders(self, layer: int) -> "RunFolders":
        """The folders of a layer of the settings' model."""
        from common.run_layout import run_folders

        return run_folders(Path(self.settings.runs), self.settings.model, layer)

    def show(self, result: CommandResult) -> None:
        """Print a result on standard output: one JSON object with ``--json``, else text for people."""
        click.echo(json.dumps(result.data, indent=1, default=str) if self._as_json else printable(result.text))
