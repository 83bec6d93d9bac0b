"""Where a run lies on disk:

<runs>/<model>/layer08/cache/                 the activation cache
<runs>/<model>/layer08/probe/<kind>/          prompts for the absorption metric
<runs>/<model>/layer08/transcoder/<name>/     weights, settings, checkpoints, log
<runs>/<model>/layer08/report/<name>/         evaluations
<runs>/<model>/layer08/features/<name>/       evidence of every feature, and the pages that show it
"""

import re
from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LAYER = re.compile(r"layer([0-9]{2,})")


@dataclass(frozen=True)
class RunFolders:
    """The folders of one layer of one model."""

    layer_folder: Path

    @property
    def cache(self) -> Path:
        return self.layer_folder / "cache"

    def probe(self, kind: str) -> Path:
        return self.layer_folder / "probe" / kind

    def transcoder(self, name: str) -> Path:
        return self.layer_folder / "transcoder" / checked_name(name)

    def report(self, name: str) -> Path:
        return self.layer_folder / "report" / checked_name(name)

    def features(self, name: str) -> Path:
        return self.layer_folder / "features" / checked_name(name)

    def trained(self) -> list[str]:
        """Names of the transcoders whose training is complete."""
        found = self.layer_folder.glob("transcoder/**/transcoder.safetensors")
        return sorted(path.parent.relative_to(self.layer_folder / "transcoder").as_posix() for path in found)


def run_folders(runs: Path, model: str, layer: int) -> RunFolders:
    """The folders for ``layer`` of ``model``, which may be a path or a Hub name: its last part names the folder."""
    return RunFolders(runs / model_folder_name(model) / f"layer{layer:02d}")


def model_folder_name(model: str) -> str:
    """The folder name of a model. Raises UsageError when the name could leave the runs folder."""
    name = Path(model.rstrip("/")).name
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{model}' cannot name a folder.", remedy="Give a Hub name or a folder with a plain name.")
    return name


def checked_name(name: str) -> str:
    """``name`` itself; raises UsageError unless every part is plain letters, digits, dot, dash, underscore."""
    if not all(_NAME.fullmatch(part) for part in name.split("/")):
        raise UsageError(f"'{name}' is no run name.", remedy="Use letters, digits, '.', '-' and '_'.")
    return name


def known_layers(runs: Path, model: str) -> list[int]:
    """Layers of ``model`` that have any folder, ascending."""
    folder = runs / model_folder_name(model)
    return sorted(int(match[1]) for path in folder.glob("layer*") if (match := _LAYER.fullmatch(path.name)))
