"""The names of all files and folders of a run. Stages and the command line take them from here.

<runs>/<model>/layer08/cache/                  the activation cache (cache/FORMAT.md)
<runs>/<model>/layer08/probe/<kind>/           activations at prompts, for the absorption metric
<runs>/<model>/layer08/transcoder/<name>/      weights, settings, checkpoints, log
<runs>/<model>/layer08/report/<name>/<date>/   one evaluation
<runs>/<model>/layer08/features/<name>/        evidence of every feature, and the pages that show it
<runs>/<model>/finetune/<name>/                state and report of a fine-tuning; its result is a transcoder
<runs>/<model>/together/<name>/                several layers' transcoders in the language model at once
<runs>/<model>/layers00-11/...                 the same for what belongs to several layers at once
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError

WEIGHTS_FILE = "transcoder.safetensors"
CONFIG_FILE = "config.json"
"""Written last: a folder with it has a trained transcoder."""
LOG_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
PROBE_WEIGHTS_FILE = "probe.safetensors"
PROBE_FILE = "probe.json"
METRICS_FILE = "metrics.json"
LOCK_FILE = ".lock"
FEATURES_PAGE = "index.html"
FIRST_LETTER = "first-letter"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_LAYER = re.compile(r"layer([0-9]{2,})")
_LAYERS = re.compile(r"layers(?:(?P<first>[0-9]{2,})-(?P<last>[0-9]{2,})|(?P<listed>[0-9]{2,}(?:_[0-9]{2,})+))")
_HUB_SNAPSHOT = re.compile(r".*/models--(?:[^/]*--)?([^/]+)/snapshots/[^/]+")


@dataclass(frozen=True)
class RunFolders:
    """The folders of one layer of one model."""

    layer_folder: Path

    @staticmethod
    def of_cache(cache: Path) -> "RunFolders":
        """The folders of the layer of an activation cache."""
        return RunFolders(cache.parent)

    @property
    def cache(self) -> Path:
        """The activation cache."""
        return self.layer_folder / "cache"

    def probe(self, kind: str = FIRST_LETTER) -> Path:
        """The cache of a probe's prompts."""
        return self.layer_folder / "probe" / kind

    def transcoder(self, name: str) -> Path:
        """The training named ``name``. Raises UsageError for a name that is not valid."""
        return self.layer_folder / "transcoder" / checked_name(name)

    def report(self, name: str) -> Path:
        """The report on the transcoder ``name``. Raises UsageError for a name that is not valid."""
        return self.layer_folder / "report" / checked_name(name)

    def features(self, name: str) -> Path:
        """The feature pages of the transcoder ``name``. Raises UsageError for a name that is not valid."""
        return self.layer_folder / "features" / checked_name(name)

    def trained(self) -> list[str]:
        """Names of the transcoders whose training is complete."""
        found = self.layer_folder.glob(f"transcoder/**/{WEIGHTS_FILE}")
        return sorted(path.parent.relative_to(self.layer_folder / "transcoder").as_posix() for path in found)


def run_folders(runs: Path, model: str, layer: int) -> RunFolders:
    """The folders for ``layer`` of ``model``, a path or a Hub name, whose last component names the folder."""
    return RunFolders(runs / model_folder_name(model) / f"layer{layer:02d}")


def together_folder(runs: Path, model: str, name: str) -> Path:
    """The folder of the report on several layers at once, whose transcoders have that name."""
    return runs / model_folder_name(model) / "together" / checked_name(name)


def finetune_folder(runs: Path, model: str, name: str) -> Path:
    """The working folder of the fine-tuning whose result has that name."""
    return runs / model_folder_name(model) / "finetune" / checked_name(name)


def joint_folders(runs: Path, model: str, layers: Sequence[int]) -> RunFolders:
    """The folders for several layers at once: ``layers00-11``, or ``layers04_08_12`` if layers between are missing."""
    ordered = sorted(layers)
    has_gaps = ordered != list(range(ordered[0], ordered[-1] + 1))
    named = "_".join(f"{layer:02d}" for layer in ordered) if has_gaps else f"{ordered[0]:02d}-{ordered[-1]:02d}"
    return RunFolders(runs / model_folder_name(model) / f"layers{named}")


def layers_of(folder: Path) -> list[int] | None:
    """The layers of a folder that ``joint_folders`` names; None for any other."""
    matched = _LAYERS.fullmatch(folder.name)
    if not matched:
        return None
    if matched["listed"]:
        return [int(layer) for layer in matched["listed"].split("_")]
    return list(range(int(matched["first"]), int(matched["last"]) + 1)) or None


def dictionaries_of_layer(runs: Path, model: str, layer: int, name: str) -> list[Path]:
    """The folders of the trained dictionaries ``name`` that ``layer`` has: its own, then those of several layers."""
    several = sorted((runs / model_folder_name(model)).glob("layers*"))
    having = [RunFolders(folder) for folder in several if layer in (layers_of(folder) or ())]
    found = [folders.transcoder(name) for folders in (run_folders(runs, model, layer), *having)]
    return [folder for folder in found if (folder / CONFIG_FILE).is_file()]


def check_of_one_layer(runs: Path, model: str, layers: Sequence[int], name: str) -> None:
    """Raises UsageError if ``name`` is a cross-layer transcoder and not a dictionary of each of ``layers`` (without
    layers: of any layer)."""
    chosen = layers or known_layers(runs, model)
    own = [(run_folders(runs, model, layer).transcoder(name) / CONFIG_FILE).is_file() for layer in chosen]
    if all(own) if layers else any(own):
        return
    of_several = f"layers*/transcoder/{checked_name(name)}/{CONFIG_FILE}"
    for config in sorted((runs / model_folder_name(model)).glob(of_several)):
        remedy = f"'nestcoder evaluate --name {name} --lm' measures it; name all of its layers there."
        raise UsageError(
            f"'{name}' is one cross-layer transcoder of several layers; this needs one dictionary for each layer.",
            where=config.parent,
            remedy=remedy,
        )


def model_folder_name(model: str) -> str:
    """The folder name of a model: the last component of its path or Hub name; for a snapshot in the Hub's cache, the
    model's name.

    The relative and the absolute path of a folder give the same name. Raises UsageError for a name that could be
    outside the runs folder.
    """
    if _is_folder(model):
        absolute = os.path.normpath(Path(model).absolute())
        snapshot = _HUB_SNAPSHOT.fullmatch(absolute)
        # A folder may have any name; unusual characters become a dash.
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", snapshot[1] if snapshot else Path(absolute).name).lstrip("._-")
    else:
        name = Path(model.rstrip("/")).name
    if not _NAME.fullmatch(name):
        raise UsageError(f"'{model}' cannot name a folder.", remedy="Give a Hub name or a folder with a plain name.")
    return name


def _is_folder(name: str) -> bool:
    try:
        return bool(name) and Path(name).is_dir()
    except OSError:  # a name that is too long, for example
        return False


def checked_name(name: str) -> str:
    """``name`` itself; raises UsageError unless every component is plain letters, digits, dot, dash, underscore."""
    if not is_name(name):
        raise UsageError(f"'{name}' is not a valid name of a run.", remedy="Use letters, digits, '.', '-' and '_'.")
    return name


def is_name(name: str) -> bool:
    """Whether a run may have this name: components of plain letters, digits, dot, dash, underscore."""
    return all(_NAME.fullmatch(component) for component in name.split("/"))


def known_layers(runs: Path, model: str) -> list[int]:
    """Layers of ``model`` that have a folder, ascending."""
    folder = runs / model_folder_name(model)
    return sorted(int(match[1]) for path in folder.glob("layer*") if (match := _LAYER.fullmatch(path.name)))


def remote_name(cache: Path) -> str:
    """The path of a cache below the runs folder, and below a remote URL: ``gpt2/layer08/cache``."""
    # <model>/<layer>/cache, the last three components of its path.
    return "/".join(cache.resolve().parts[-3:])
