"""In which dtype the run in a folder was begun: it goes on in that one, also on another device."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, cast, get_args

from common.errors import NestcoderError
from train.record.checkpoint import CHECKPOINTS_FOLDER, facts_path
from train.record.checkpoint_index import read_index
from train.resolved import ComputeDtype
from transcoder.formats.native import CONFIG_FILE


def begun_dtype(folder: Path) -> ComputeDtype | None:
    """The dtype of matrix products in the record of a complete run, or else in that of its newest checkpoint.

    None if there is neither, or if they cannot be read: what reads all of them later says why.
    """
    for read in (_record_of_complete_run, _record_of_newest_checkpoint):
        with suppress(OSError, ValueError, LookupError, TypeError, NestcoderError):
            found = read(folder)["settings"]["compute_dtype"]
            if found in get_args(ComputeDtype):
                return cast(ComputeDtype, found)
    return None


def _record_of_complete_run(folder: Path) -> Any:
    return json.loads((folder / CONFIG_FILE).read_text())


def _record_of_newest_checkpoint(folder: Path) -> Any:
    checkpoints = folder / CHECKPOINTS_FOLDER
    newest = read_index(checkpoints).entries[-1]
    return json.loads(facts_path(checkpoints, newest.step).read_text())["identity"]
