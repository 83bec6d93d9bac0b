"""OpenMOSS's Language-Model-SAEs (Llama Scope): known by its configuration, and refused by name.

A row is scaled there by its own norm or by a data set's, with factors that lie in the configuration or among the
tensors, as the version has it; and features pass a threshold before or after they are multiplied by their decoder's
norm. A reader of that would be right only by luck without their files to try.
"""

from pathlib import Path

from common.errors import DamagedError, MismatchError
from transcoder.formats.files.safe import read_json
from transcoder.formats.wanted import Wanted
from transcoder.transcoder import Transcoder

_CONFIGS = ("hyperparams.json", "config.json")
_KEY = "hook_point_in"


def find_openmoss(path: Path, _wanted: Wanted) -> Path | None:
    """The configuration that ``path`` means, where it is of this layout."""
    folder = path if path.is_dir() else path.parent
    above = folder.parent if folder.name == "checkpoints" else folder
    for file in (above / name for name in _CONFIGS):
        if file.is_file() and _KEY in _keys(file):
            return file
    return None


def read_openmoss(config: Path, _wanted: Wanted) -> Transcoder:
    """Always raises MismatchError."""
    what = (
        "This is a dictionary of OpenMOSS's Language-Model-SAEs, which is not read: its versions scale rows in "
        "different ways, and their files do not say in which."
    )
    raise MismatchError(
        what, where=config, remedy="Fold the scales into the weights, save them in SAELens's layout, and import that."
    )


def _keys(file: Path) -> set[str]:
    """Of a JSON object; none of what is no such file, which another layout may know better."""
    try:
        return set(read_json(file))
    except DamagedError:
        return set()
