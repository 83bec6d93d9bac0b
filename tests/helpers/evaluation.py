"""An evaluation of one layer as most tests want it: on the CPU, silent."""

from pathlib import Path
from typing import Any

from common.progress import Silent
from evaluate.config import EvaluateSettings
from evaluate.run import evaluate_layer

OPTIONS = {"lm", "gemma_scope", "against", "force", "device"}


def evaluate(cache: Path, transcoder: Path, out: Path, **options: Any) -> dict[str, Any]:
    """The contents of metrics.json. ``options`` are settings of an evaluation (without resamplings, unless it is told
    their number) and the arguments of ``evaluate_layer`` in ``OPTIONS``."""
    given = {"device": "cpu"} | {name: options.pop(name) for name in OPTIONS & options.keys()}
    settings = EvaluateSettings(**{"bootstrap": 0} | options)
    return evaluate_layer(cache=cache, transcoder=transcoder, out=out, settings=settings, progress=Silent(), **given)
